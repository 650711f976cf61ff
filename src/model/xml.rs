//! A small XML tree, enough for what Pacemaker's tools print.

use std::collections::BTreeMap;

use quick_xml::{
    XmlVersion,
    events::{BytesStart, Event},
    reader::Reader,
};

/// An element with its attributes and child elements. Text is dropped except where nothing else is
/// inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    pub name: String,
    pub attributes: BTreeMap<String, String>,
    pub children: Vec<Element>,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    #[error("the XML ends too early, inside <{inside}>")]
    CutShort { inside: String },
    #[error("it is not XML: {reason}")]
    Malformed { reason: String },
    #[error("there is no XML in it")]
    Empty,
}

impl Element {
    /// Reads a document: the root element.
    ///
    /// # Errors
    /// [`XmlError`] when `text` is not one well-formed document, above all when it was cut short.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        loop {
            let event = reader.read_event().map_err(|error| broken(&open, &error))?;
            let closed = match event {
                Event::Start(start) => {
                    open.push(Self::start(&start)?);
                    continue;
                }
                Event::Empty(start) => Self::start(&start)?,
                Event::End(_) => match open.pop() {
                    Some(element) => element,
                    None => continue,
                },
                Event::Text(text) => {
                    if let Some(parent) = open.last_mut() {
                        parent.text.push_str(&text.xml10_content());
                    }
                    continue;
                }
                Event::Eof => {
                    return Err(match open.last() {
                        Some(last) => XmlError::CutShort { inside: last.name.clone() },
                        None => XmlError::Empty,
                    });
                }
                _ => continue,
            };
            match open.last_mut() {
                Some(parent) => parent.children.push(closed),
                None => return Ok(closed),
            }
        }
    }

    fn start(start: &BytesStart<'_>) -> Result<Self, XmlError> {
        let mut element = Self { name: start.name().as_ref().to_owned(), ..Self::default() };
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| malformed(&error))?;
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|error| malformed(&error))?;
            element.attributes.insert(attribute.key.as_ref().to_owned(), value.into_owned());
        }
        Ok(element)
    }

    /// The value of an attribute; empty when it is not there.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Whether an attribute says yes. One that is not there does not.
    pub fn flag(&self, name: &str) -> bool {
        ["true", "yes", "on", "1"].iter().any(|yes| self.attribute(name).eq_ignore_ascii_case(yes))
    }

    /// The first child with that name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The children with that name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// This element and everything below it, parents before children.
    pub fn descendants(&self) -> Vec<&Self> {
        let mut found = vec![self];
        let mut next = 0;
        while let Some(&element) = found.get(next) {
            found.extend(&element.children);
            next += 1;
        }
        found
    }
}

fn malformed(error: &dyn std::error::Error) -> XmlError {
    XmlError::Malformed { reason: error.to_string() }
}

/// Most broken XML was cut in the middle of a tag, which the reader reports as a syntax error.
fn broken(open: &[Element], error: &quick_xml::Error) -> XmlError {
    match (open.last(), error) {
        (Some(last), quick_xml::Error::Syntax(_)) => {
            XmlError::CutShort { inside: last.name.clone() }
        }
        _ => malformed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_unescaped() {
        let root = Element::parse("<a b='1 &lt; 2'><c d=\"TRUE\"/></a>").unwrap();
        assert_eq!(root.attribute("b"), "1 < 2");
        assert!(root.child("c").unwrap().flag("d"));
    }

    #[test]
    fn a_cut_document_names_the_element_that_was_left_open() {
        for text in ["<a><b>", "<a><b><c d=\"e", "<a><b></"] {
            let error = Element::parse(text).unwrap_err();
            assert_eq!(error, XmlError::CutShort { inside: "b".to_owned() }, "{text}");
        }
    }

    #[test]
    fn nothing_and_noise_are_no_documents() {
        assert_eq!(Element::parse("").unwrap_err(), XmlError::Empty);
        assert_eq!(Element::parse("crm_mon: command not found").unwrap_err(), XmlError::Empty);
    }
}
