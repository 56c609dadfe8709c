//! Compiles the part of etcd's API that the fake etcd serves.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(["etcd.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(set)?;
    Ok(())
}
