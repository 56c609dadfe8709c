pub mod etcd;
pub mod wire;
