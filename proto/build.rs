//! Compiles the protos without a `protoc` binary: protox parses, tonic-prost-build generates.
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::fmt::Write as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "tranche/v1/batch.proto",
        "tranche/v1/worker.proto",
        "tranche/v1/admin.proto",
        "tranche/v1/record.proto",
    ];
    println!("cargo:rerun-if-changed=tranche");
    let set: FileDescriptorSet = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("tranche.v1.bin"), set.encode_to_vec())?;
    std::fs::write(out.join("rpc.rs"), rpcs(&set))?;
    tonic_prost_build::configure()
        .bytes(".tranche.v1")
        .extern_path(".tranche.v1.AppendTasksRequest", "crate::AppendTasksRequest")
        .extern_path(".tranche.v1.TaskList", "crate::TaskList")
        .compile_fds(set)?;
    Ok(())
}

/// An enum with one variant for each RPC of our services: whoever matches on it without a wildcard doesn't compile
/// any more when an RPC is added.
fn rpcs(set: &FileDescriptorSet) -> String {
    let (mut variants, mut all, mut paths, mut streams) =
        (String::new(), String::new(), String::new(), Vec::new());
    let mut count = 0;
    for file in set.file.iter().filter(|file| file.package() == "tranche.v1") {
        for service in &file.service {
            for method in &service.method {
                let name = method.name();
                let path = format!("/{}.{}/{name}", file.package(), service.name());
                writeln!(variants, "    /// `{}.{name}`.\n    {name},", service.name()).expect("memory");
                write!(all, "Self::{name}, ").expect("memory");
                writeln!(paths, "            Self::{name} => \"{path}\",").expect("memory");
                if method.client_streaming() || method.server_streaming() {
                    streams.push(format!("Self::{name}"));
                }
                count += 1;
            }
        }
    }
    let streams = streams.join(" | ");
    format!(
        "/// Every RPC of `tranche.v1`.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         pub enum Rpc {{\n{variants}}}\n\n\
         impl Rpc {{\n    /// All of them.\n    pub const ALL: [Self; {count}] = [{all}];\n\n    \
         /// Its path in a request: `/package.Service/Method`.\n    \
         pub const fn path(self) -> &'static str {{\n        match self {{\n{paths}        }}\n    }}\n\n    \
         /// Whether requests or answers are a stream.\n    \
         pub const fn streams(self) -> bool {{\n        matches!(self, {streams})\n    }}\n}}\n"
    )
}
