//! The models of hostile peers, over the fuzz targets' seeds and over bytes at random.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use scx_vsock_tests::oracles;

/// Runs a model over each seed of its fuzz target.
fn over_seeds(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let seeds: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for seed in seeds {
        println!("{}", seed.display());
        check(&fs::read(seed).unwrap());
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..most)
}

macro_rules! model {
    ($name:ident, $cases:expr, $most:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn holds_over_its_seeds() {
                over_seeds(stringify!($name), oracles::$name::check);
            }

            proptest! {
                #![proptest_config(ProptestConfig { cases: $cases, failure_persistence: None, ..ProptestConfig::default() })]

                #[test]
                fn holds_over_any_script(script in bytes($most)) {
                    oracles::$name::check(&script);
                }
            }
        }
    };
}

model!(line, 2000, 200);
model!(chain, 2000, 300);
model!(client, 500, 127);
model!(muxer, 300, 1000);
model!(guest, 200, 2000);
#[cfg(target_arch = "x86_64")]
model!(microvm, 300, 500);
model!(mmio, 200, 500);
model!(vhost_user, 100, 300);
