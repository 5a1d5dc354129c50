//! Links the freestanding program: without libc and start files, laid out by a script of its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=freestanding.ld");
    if std::env::var_os("CARGO_FEATURE_FREESTANDING").is_none() {
        return;
    }
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = format!("-Wl,--build-id=none,--no-eh-frame-hdr,-z,norelro,-T,{directory}/freestanding.ld");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", &script] {
        println!("cargo::rustc-link-arg-bin=scx-vsock-agent={argument}");
    }
}
