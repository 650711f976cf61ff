//! A setting is said once: doc, key, type and default in one line of a `section!`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written as `"5s"` or `"200ms"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    pub fn get(self) -> Duration {
        self.0
    }
}

/// `count` seconds.
pub const fn secs(count: u64) -> Span {
    Span(Duration::from_secs(count))
}

/// `count` milliseconds.
pub const fn millis(count: u64) -> Span {
    Span(Duration::from_millis(count))
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        humantime::parse_duration(text)
            .map(Span)
            .map_err(|why| format!("`{text}` is not a length of time such as \"5s\": {why}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.0))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// One key of a section, for people.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub key: &'static str,
    /// Lines of the doc comment.
    pub doc: &'static [&'static str],
}

/// What `show-config` needs to know of a section.
pub trait Section: Default + Serialize {
    /// Lines of the section's doc comment.
    const DOC: &'static [&'static str];
    const FIELDS: &'static [Field];
}

macro_rules! section {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident {
            $(
                $(#[doc = $field_doc:literal])*
                $key:literal $field:ident: $type:ty = $default:expr,
            )*
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $field_doc])*
                #[serde(rename = $key)]
                pub $field: $type,
            )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl crate::config::section::Section for $name {
            const DOC: &'static [&'static str] = &[$($doc),*];
            const FIELDS: &'static [crate::config::section::Field] = &[
                $(crate::config::section::Field { key: $key, doc: &[$($field_doc),*] },)*
            ];
        }
    };
}
pub(crate) use section;
