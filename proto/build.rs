//! Compiles the protos without a `protoc` binary: protox parses, tonic-prost-build generates.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "tranche/v1/batch.proto",
        "tranche/v1/worker.proto",
        "tranche/v1/admin.proto",
        "tranche/v1/record.proto",
    ];
    println!("cargo:rerun-if-changed=tranche");
    let set = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("tranche.v1.bin"), set.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".tranche.v1")
        .extern_path(".tranche.v1.AppendTasksRequest", "crate::AppendTasksRequest")
        .extern_path(".tranche.v1.TaskList", "crate::TaskList")
        .compile_fds(set)?;
    Ok(())
}
