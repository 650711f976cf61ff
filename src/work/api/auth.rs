//! Who may ask for changes: whoever shows the shared token.

use tonic::{Status, metadata::MetadataMap};

/// The judge of `authorization: Bearer TOKEN`.
pub struct Auth(Option<Vec<u8>>);

impl Auth {
    /// None lets everybody in.
    pub fn new(token: Option<&str>) -> Self {
        Self(token.map(|token| token.as_bytes().to_vec()))
    }

    /// # Errors
    /// UNAUTHENTICATED, with what is missing.
    pub fn judge(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(expected) = &self.0 else { return Ok(()) };
        let given = metadata
            .get("authorization")
            .ok_or_else(|| Status::unauthenticated("no `authorization: Bearer TOKEN` was sent"))?;
        let token = given
            .as_bytes()
            .strip_prefix(b"Bearer ")
            .ok_or_else(|| Status::unauthenticated("`authorization` is not `Bearer TOKEN`"))?;
        if equal(expected, token) {
            Ok(())
        } else {
            Err(Status::unauthenticated("the token that was sent is not this agent's"))
        }
    }
}

/// Compares in a time that depends on the length of `given` only.
fn equal(expected: &[u8], given: &[u8]) -> bool {
    let mut difference = usize::from(expected.len() != given.len());
    for (index, byte) in given.iter().enumerate() {
        let wanted = expected.get(index % expected.len().max(1)).copied().unwrap_or_default();
        difference |= usize::from(std::hint::black_box(wanted ^ byte));
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_token_is_equal() {
        assert!(equal(b"secret", b"secret"));
        for wrong in ["", "secre", "secretsecret", "Secret", "secrett"] {
            assert!(!equal(b"secret", wrong.as_bytes()), "{wrong}");
        }
    }
}
