//! Builds the pico guest with a cargo of its own, so that it can be embedded.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Pico is freestanding, but the toolchain has only the host's target: the image is
/// linked statically at a fixed address by `pico/link.ld`.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const RUSTFLAGS: [&str; 4] = [
    "-Crelocation-model=static",
    "-Ctarget-feature=+crt-static",
    "-Cforce-unwind-tables=no",
    "-Cdebuginfo=0",
];

fn main() {
    let pico = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("pico");
    let target = PathBuf::from(env::var_os("OUT_DIR").unwrap()).join("pico");
    for input in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld"] {
        println!("cargo:rerun-if-changed={}", pico.join(input).display());
    }

    let mut cargo = Command::new(env::var_os("CARGO").unwrap());
    // What cargo told this script is about another package, and wrappers such as
    // clippy's would check pico instead of building it.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text.starts_with("CARGO_") || text.starts_with("RUST");
        let kept = [
            "CARGO_HOME",
            "CARGO_MAKEFLAGS",
            "RUSTUP_HOME",
            "RUSTUP_TOOLCHAIN",
        ];
        let kept = kept.contains(&&*text)
            || text.starts_with("CARGO_NET")
            || text.starts_with("CARGO_HTTP");
        if ours && !kept {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(&pico)
        .args([
            "build",
            "--release",
            "--locked",
            "--bin",
            "pico-image",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"))
        .status()
        .unwrap();
    assert!(
        status.success(),
        "building guest-images/pico failed: its messages are above"
    );

    let image = target.join(TARGET).join("release/pico-image");
    println!("cargo:rustc-env=PICO_IMAGE={}", image.display());
}
