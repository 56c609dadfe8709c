//! Who is let in, and what they may do there: real TLS, real processes.

mod calls;
mod ends;
mod etcd;
mod limits;
mod namespaces;
mod processes;
mod replicas;
mod workers;
mod world;
