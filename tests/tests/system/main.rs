//! The whole system: real coordinators and workers as processes, a real etcd, real files.

mod phases;
