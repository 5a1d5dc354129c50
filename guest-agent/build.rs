//! Names this folder to the build scripts of packages that build the freestanding program from it.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::metadata=manifest_dir={}", env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
}
