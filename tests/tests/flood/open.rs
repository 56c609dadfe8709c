//! What answers to whoever nobody knows: each setting of `open_services`, as docs/security.md says it.

use tranche_tests::process::{Process, program};
use tranche_tests::{Pki, grpcurl, run, sha256_hex};

const TOKEN: &str = "a-readers-token";

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_open_as_configured() {
    let pki = Pki::new();
    let reader = format!(
        "[[identity]]\nname = 'r'\ntoken_sha256 = {:?}\nnamespace = 'default'\nroles = ['reader']\n",
        sha256_hex(TOKEN)
    );
    pki.write("identities.toml", reader);
    for (setting, health, reflection) in [
        (None, true, false),
        (Some(""), false, false),
        (Some("health"), true, false),
        (Some("reflection"), false, true),
        (Some("health,reflection"), true, true),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let mut flags = vec![
            "--listen=127.0.0.1:0".to_owned(),
            format!("--store=embedded:{}", dir.path().join("state").display()),
            format!("--tls-cert={}", pki.text("server.pem")),
            format!("--tls-key={}", pki.text("server.key")),
            format!("--identities={}", pki.text("identities.toml")),
        ];
        flags.extend(setting.map(|services| format!("--open-services={services}")));
        let mut coordinator =
            Process::spawn("coordinator", &program("tranche-coordinator"), &flags, dir.path());
        let address = coordinator.said("listening on").await.expect("it starts");
        let ca = pki.text("ca.pem");
        let bearer = format!("authorization: Bearer {TOKEN}");
        let call = async |options: &[&str], words: &[&str]| {
            let all = [&["-cacert", &ca, "-max-time", "50"], options, &[&address], words].concat();
            run(&grpcurl(), &all, "").await
        };
        let proto =
            ["-import-path", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flood"), "-proto", "health.proto"];
        let check = ["grpc.health.v1.Health/Check"];
        let list = ["tranche.v1.BatchService/ListBatches"];
        for (known, options) in [(false, vec![]), (true, vec!["-H", &bearer])] {
            let told = format!("open_services = {setting:?}, known: {known}");
            for (words, options, open) in [
                (&check[..], [&proto[..], &options].concat(), health || known),
                (&["list"][..], options.clone(), reflection || known),
                // By reflection, too: without it the method isn't found.
                (&list[..], options.clone(), known),
            ] {
                let ran = call(&options, words).await;
                assert_eq!(ran.code() == Some(0), open, "{told}, {words:?}: {ran:?}");
                if !open && (reflection || words != list) {
                    assert!(ran.stderr.contains("Unauthenticated"), "{told}, {words:?}: {ran:?}");
                }
            }
        }
    }
}
