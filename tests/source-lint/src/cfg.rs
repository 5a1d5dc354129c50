//! Attributes that compile an item for tests only.

use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token};

/// Whether these attributes keep an item out of every build but those of tests.
pub fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args().is_ok_and(|predicate| requires_test(&predicate))
    })
}

fn requires_test(predicate: &Meta) -> bool {
    match predicate {
        Meta::Path(path) => path.is_ident("test") || path.is_ident("doctest"),
        Meta::NameValue(_) => false,
        Meta::List(list) => {
            let Ok(parts) = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated) else { return false };
            if list.path.is_ident("all") {
                parts.iter().any(requires_test)
            } else {
                list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(requires_test)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_only(attribute: &str) -> bool {
        let item: syn::ItemFn = syn::parse_str(&format!("{attribute} fn item() {{}}")).unwrap();
        is_test_only(&item.attrs)
    }

    #[test]
    fn predicates_that_need_test_are_test_only() {
        for attribute in ["#[test]", "#[cfg(test)]", "#[cfg(all(test, unix))]", "#[cfg(any(test, doctest))]"] {
            assert!(test_only(attribute), "{attribute}");
        }
    }

    #[test]
    fn other_predicates_are_not_test_only() {
        for attribute in ["#[inline]", "#[cfg(unix)]", "#[cfg(any(test, fuzzing))]", "#[cfg(not(test))]"] {
            assert!(!test_only(attribute), "{attribute}");
        }
    }
}
