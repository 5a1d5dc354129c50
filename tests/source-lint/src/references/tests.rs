use super::{Reference, references_of};
use crate::testing::load_tree;

/// The references of a crate as `from to path`, the files without `src/` and `.rs`.
fn references(tree: &[(&str, &str)]) -> Vec<String> {
    let short = |file: &std::path::Path| file.display().to_string().replace("src/", "").replace(".rs", "");
    let shown = references_of(&load_tree(tree));
    let line = |it: &Reference| format!("{} {} {}", short(&it.from), short(&it.to), it.path);
    let mut lines: Vec<String> = shown.iter().map(line).collect();
    lines.sort();
    lines
}

/// The references of a crate with the modules `a` and `b`.
fn between(a: &str, b: &str) -> Vec<String> {
    references(&[("src/lib.rs", "mod a; mod b;"), ("src/a.rs", a), ("src/b.rs", b)])
}

#[test]
fn imported_types_are_references() {
    let found = between("use crate::b::B; pub struct A(B);", "use super::a::A; pub struct B(A);");
    assert_eq!(found, ["a b B", "a b crate::b::B", "b a A", "b a super::a::A"]);
}

#[test]
fn every_form_of_use_is_a_reference() {
    let found = between("use crate::{b::{C as D, E as _}, b::f};", "pub struct C; pub trait E {} pub fn f() {}");
    assert_eq!(found, ["a b crate::b::C", "a b crate::b::E", "a b crate::b::f"]);
}

#[test]
fn inline_paths_are_references() {
    let a = "fn f(x: crate::b::T) -> impl super::b::Tr { match x { crate::b::T::V => crate::b::g::<u8>(), } }
             pub const A: u8 = 0;";
    let b = "pub enum T { V } pub trait Tr {} pub fn g<T>() { let _ = crate::a::A; }";
    let expected = ["a b crate::b::T", "a b crate::b::T::V", "a b crate::b::g", "a b super::b::Tr", "b a crate::a::A"];
    assert_eq!(between(a, b), expected);
}

#[test]
fn the_declaration_of_a_module_is_no_reference() {
    assert!(between("", "").is_empty());
}

#[test]
fn re_exports_refer_to_the_definition() {
    let found = references(&[
        ("src/lib.rs", "mod client; mod user; pub use client::Deadline;"),
        ("src/client/mod.rs", "mod wait; pub use wait::Deadline as Limit; pub use wait::*;"),
        ("src/client/wait.rs", "pub struct Deadline;"),
        ("src/user.rs", "use crate::client::Limit; use crate::Deadline as D; fn f(_: crate::client::Deadline) {}"),
    ]);
    let expected = ["crate::Deadline", "crate::client::Deadline", "crate::client::Limit"];
    assert_eq!(found, expected.map(|path| format!("user client/wait {path}")));
}

#[test]
fn private_imports_of_a_parent_refer_to_the_definition() {
    let found = references(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b::B; mod c;"),
        ("src/a/c.rs", "use super::B;"),
        ("src/b.rs", "pub struct B;"),
    ]);
    assert_eq!(found, ["a b crate::b::B", "a/c b super::B"]);
}

#[test]
fn re_exporting_children_is_no_reference() {
    let found = references(&[
        ("src/lib.rs", "mod a;"),
        ("src/a.rs", "mod c; pub use c::C; pub(crate) use c::*; pub const LIMIT: u8 = 0;"),
        ("src/a/c.rs", "pub struct C([u8; super::LIMIT]);"),
    ]);
    assert_eq!(found, ["a/c a super::LIMIT"]);
}

#[test]
fn re_exporting_others_is_a_reference() {
    assert_eq!(between("pub use crate::b::B;", "pub struct B;"), ["a b crate::b::B"]);
    assert_eq!(between("pub use crate::b::*;", "pub struct B;"), ["a b crate::b::*"]);
}

#[test]
fn parents_that_use_their_children_refer_to_them() {
    let found = references(&[
        ("src/lib.rs", "mod sample;"),
        ("src/sample.rs", "mod spawned; pub use spawned::Spawned; pub struct Sample; fn f(_: Spawned) {}"),
        ("src/sample/spawned.rs", "pub struct Spawned(super::Sample);"),
    ]);
    assert_eq!(found, ["sample sample/spawned Spawned", "sample/spawned sample super::Sample"]);
}

#[test]
fn importing_a_module_refers_to_what_is_used_of_it() {
    let found = references(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b; use crate::b::c::{self}; fn f() { b::g(); c::h(); }"),
        ("src/b.rs", "pub mod c; pub use c::g;"),
        ("src/b/c.rs", "pub fn g() {} pub fn h() {}"),
    ]);
    assert_eq!(found, ["a b/c b::g", "a b/c c::h"]);
}

#[test]
fn globs_refer_to_what_is_used_of_them() {
    let found = references(&[
        ("src/lib.rs", "mod a; mod b;"),
        ("src/a.rs", "use crate::b::*; fn f() -> Thing { g() }"),
        ("src/b.rs", "mod c; pub use c::Thing; pub fn g() {} pub fn unused() {}"),
        ("src/b/c.rs", "pub struct Thing;"),
    ]);
    assert_eq!(found, ["a b g", "a b/c Thing"]);
}

#[test]
fn globs_of_unseen_names_refer_to_the_module() {
    assert_eq!(between("use crate::b::*;", "pub trait Ext {}"), ["a b crate::b::*"]);
}

#[test]
fn globs_of_enums_refer_to_the_enum() {
    let found = between("use crate::b::Kind::*; fn f(_: u8) { match 0 { One => Two } }", "pub enum Kind { One, Two }");
    assert_eq!(found, ["a b One", "a b Two", "a b crate::b::Kind::*"]);
}

#[test]
fn variables_and_parameters_are_no_references() {
    let a = "use crate::b::*; fn f<T: X>(g: u8, t: T) -> T { let h = g; h; t }";
    assert_eq!(between(a, "pub fn g() {} pub fn h() {} pub struct T; pub trait X {}"), ["a b X"]);
}

#[test]
fn implementations_refer_to_their_type() {
    let found = between("impl crate::b::B { fn new() {} }", "pub struct B; fn f() { B::new() }");
    assert_eq!(found, ["a b crate::b::B", "b a B::new"]);
}

#[test]
fn self_is_the_type_of_the_implementation() {
    let a = "use crate::b::B; impl B { fn new() { Self::other() } }";
    assert_eq!(
        between(a, "pub struct B; impl B { pub fn other() {} }"),
        ["a b B", "a b Self::other", "a b crate::b::B"]
    );
}

#[test]
fn arguments_of_macros_are_searched() {
    let found = between("fn f() { assert!(x(), \"{}\", [crate::b::B::new()]); }", "pub struct B;");
    assert_eq!(found, ["a b crate::b::B::new"]);
}

#[test]
fn macros_by_example_are_references() {
    let found = references(&[
        ("src/lib.rs", "#[macro_use] mod a; mod b;"),
        ("src/a.rs", "macro_rules! one { () => { $crate::b::B } } pub(crate) use one;"),
        ("src/b.rs", "use crate::a::one as two; pub struct B; fn f() { one!(); two!(); }"),
    ]);
    assert_eq!(found, ["a b crate::b::B", "b a crate::a::one", "b a one", "b a two"]);
}

#[test]
fn names_made_by_macros_are_their_modules() {
    assert_eq!(between("use crate::b::Made;", "make! { Made }"), ["a b crate::b::Made"]);
}

#[test]
fn names_of_other_crates_are_no_references() {
    let a = "use ::b::X; use std::fmt; use crate::b::{Y, Z}; fn f() -> fmt::Result { serde::b() }";
    assert!(between(a, "pub use std::sync::Y; pub use libc::*; pub struct X;").is_empty());
}

#[test]
fn each_configuration_is_a_reference() {
    let found = references(&[
        ("src/lib.rs", "mod a; mod b; mod c;"),
        ("src/a.rs", "#[cfg(unix)] use crate::b::T; #[cfg(not(unix))] use crate::c::T; fn f(_: T) {}"),
        ("src/b.rs", "pub struct T;"),
        ("src/c.rs", "pub struct T;"),
    ]);
    assert_eq!(found, ["a b T", "a b crate::b::T", "a c T", "a c crate::c::T"]);
}

#[test]
fn blocks_have_names_of_their_own() {
    let a = "fn f() { use crate::b::B; fn g() -> B { B::new() } } fn h() -> B {} struct B;";
    assert_eq!(between(a, "pub struct B;"), ["a b B", "a b B::new", "a b crate::b::B"]);
}

#[test]
fn inline_modules_are_part_of_their_file() {
    let found = between("mod c { use super::super::b::B; pub struct C; } use c::C;", "pub struct B(crate::a::c::C);");
    assert_eq!(found, ["a b super::super::b::B", "b a crate::a::c::C"]);
}

#[test]
fn code_for_tests_is_no_reference() {
    let found = references(&[
        ("src/lib.rs", "mod a; mod b; #[cfg(test)] mod fixture;"),
        ("src/a.rs", "#[cfg(test)] use crate::b::B; #[test] fn t() { crate::b::g() } #[cfg(test)] mod tests;"),
        ("src/a/tests.rs", "use super::*; use crate::b::B;"),
        ("src/b.rs", "pub struct B { #[cfg(test)] a: crate::a::A } impl B { #[cfg(test)] fn a() { crate::a::f() } }"),
        ("src/fixture.rs", "use crate::a::A;"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn paths_of_attributes_and_visibility_are_no_references() {
    assert!(between("#[crate::b::attribute] pub(in crate::b) struct A;", "").is_empty());
}

#[test]
fn imports_that_name_each_other_end() {
    let found = between("pub use crate::b::X; pub use crate::b::*;", "pub use crate::a::X; pub use crate::a::*;");
    assert_eq!(found, ["a b crate::b::*", "a b crate::b::X", "b a crate::a::*", "b a crate::a::X"]);
}
