//! Templates to files: all rendered and checked before any is written.

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::reload::File;
use crate::{
    edge::files::{self, FileError},
    model::{
        pgbouncer_ini::Database,
        template::{self, Context, TemplateError},
        wanted::Wanted,
    },
};

/// A text that PgBouncer did not accept is offered again after this long.
const REJECTED_FOR: Duration = Duration::from_secs(5);

/// A template, and the file rendered from it.
#[derive(Debug, Clone)]
pub struct Template {
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("there is no template to render")]
    NoTemplates,
    #[error("the last good files stay in use")]
    Read(#[source] FileError),
    #[error("the last good files stay in use")]
    Template(#[source] TemplateError),
    #[error("PgBouncer stays with the last good file")]
    Write(#[source] FileError),
    #[error("PgBouncer did not accept what the templates render to; the last good files are back")]
    Rejected,
}

/// What the files say now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The primary that they were rendered for.
    pub address: IpAddr,
    /// The databases of PgBouncer's own file.
    pub databases: Vec<Database>,
    /// Where PgBouncer's own file is.
    path: PathBuf,
    texts: Vec<String>,
}

impl Rendered {
    /// PgBouncer's own file.
    pub fn pgbouncer_ini(&self) -> File {
        let text = self.texts.first().cloned().unwrap_or_default();
        File { path: self.path.clone(), databases: self.databases.clone(), text }
    }
}

/// Files as they were before a change.
#[derive(Debug)]
pub struct Before {
    texts: Vec<(PathBuf, Option<String>)>,
    rendered: Option<Rendered>,
}

/// Keeps the files in step with what is wanted.
#[derive(Debug)]
pub struct Renderer {
    templates: Vec<Template>,
    current: Option<Rendered>,
    rejected: Option<(Vec<String>, Instant)>,
}

impl Renderer {
    /// The first of `templates` is PgBouncer's.
    pub fn new(templates: Vec<Template>) -> Self {
        Self { templates, current: None, rejected: None }
    }

    /// What the files say, once they have been rendered.
    pub fn current(&self) -> Option<&Rendered> {
        self.current.as_ref()
    }

    /// Brings the files in step; returns what was there before if any byte changed.
    ///
    /// PgBouncer's own file is written last, since it may include the others.
    ///
    /// # Errors
    /// Before anything is written, unless writing itself fails; then each file has its old or
    /// its new content as a whole, and PgBouncer's own its old one.
    pub fn apply(&mut self, wanted: &Wanted) -> Result<Option<Before>, RenderError> {
        let new = self.render(wanted)?;
        if let Some((texts, since)) = &self.rejected
            && *texts == new.texts
            && since.elapsed() < REJECTED_FOR
        {
            return Err(RenderError::Rejected);
        }
        let mut before = Before { texts: Vec::new(), rendered: self.current.clone() };
        for (template, text) in self.templates.iter().zip(&new.texts).rev() {
            let old = files::read(&template.target).ok();
            if old.as_ref() == Some(text) {
                continue;
            }
            files::replace(&template.target, text, None).map_err(RenderError::Write)?;
            before.texts.push((template.target.clone(), old));
        }
        self.current = Some(new);
        Ok((!before.texts.is_empty()).then_some(before))
    }

    /// Puts back what was there before: PgBouncer did not accept the new text.
    ///
    /// Returns whether there was something to put back; a first file stays where it is.
    pub fn restore(&mut self, before: Before) -> Result<bool, RenderError> {
        let Some(rendered) = before.rendered else { return Ok(false) };
        if let Some(refused) = self.current.take() {
            self.rejected = Some((refused.texts, Instant::now()));
        }
        self.current = Some(rendered);
        for (path, old) in before.texts.iter().rev() {
            if let Some(old) = old {
                files::replace(path, old, None).map_err(RenderError::Write)?;
            }
        }
        Ok(true)
    }

    fn render(&self, wanted: &Wanted) -> Result<Rendered, RenderError> {
        let context = Context::new(wanted.address, wanted.view.as_ref());
        let (first, others) = self.templates.split_first().ok_or(RenderError::NoTemplates)?;
        let read = |template: &Template| -> Result<(String, String), RenderError> {
            let text = files::read(&template.source).map_err(RenderError::Read)?;
            Ok((template.source.display().to_string(), text))
        };
        let (name, source) = read(first)?;
        let (text, databases) =
            template::render_pgbouncer(&name, &source, &context).map_err(RenderError::Template)?;
        let mut texts = vec![text];
        for other in others {
            let (name, source) = read(other)?;
            let text = template::render(&name, &source, &context).map_err(RenderError::Template)?;
            texts.push(text);
        }
        let path = first.target.clone();
        Ok(Rendered { address: wanted.address, databases, path, texts })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::wanted;

    fn setup() -> (tempfile::TempDir, Renderer, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (source, target) = (dir.path().join("t"), dir.path().join("ini"));
        fs::write(&source, "[databases]\na = host={{.Host}}\n").expect("writable");
        let template = Template { source: source.clone(), target: target.clone() };
        (dir, Renderer::new(vec![template]), source, target)
    }

    fn to(address: &str) -> Wanted {
        wanted::wanted(Some(address), None).expect("an address")
    }

    #[test]
    fn unchanged_bytes_are_not_written() {
        let (_dir, mut renderer, _, target) = setup();
        assert!(renderer.apply(&to("10.0.0.1")).expect("applied").is_some());
        let before = fs::metadata(&target).expect("there").modified().expect("a time");
        assert!(renderer.apply(&to("10.0.0.1")).expect("applied").is_none());
        assert_eq!(fs::metadata(&target).expect("there").modified().expect("a time"), before);
    }

    #[test]
    fn a_bad_template_leaves_every_file_as_it_was() {
        let (dir, mut renderer, source, target) = setup();
        let other = dir.path().join("other");
        fs::write(dir.path().join("o"), "{{ host }}\n").expect("writable");
        let template = Template { source: dir.path().join("o"), target: other.clone() };
        renderer.templates.push(template);
        renderer.apply(&to("10.0.0.1")).expect("applied");
        for bad in ["{{ nonsense }}", "[pgbouncer]\n", "[databases]\nbroken\n"] {
            fs::write(&source, bad).expect("writable");
            let error = renderer.apply(&to("10.0.0.2")).expect_err("refused");
            assert!(matches!(error, RenderError::Template(_)));
        }
        assert!(fs::read_to_string(&target).expect("there").contains("10.0.0.1"));
        assert_eq!(fs::read_to_string(&other).expect("there"), "10.0.0.1\n");
    }

    #[test]
    fn a_rejected_text_is_put_back_and_not_offered_again_at_once() {
        let (_dir, mut renderer, _, target) = setup();
        renderer.apply(&to("10.0.0.1")).expect("applied");
        let before = renderer.apply(&to("10.0.0.2")).expect("applied").expect("changed");
        assert!(renderer.restore(before).expect("restored"));
        assert!(fs::read_to_string(&target).expect("there").contains("10.0.0.1"));
        assert!(matches!(renderer.apply(&to("10.0.0.2")), Err(RenderError::Rejected)));
        assert!(renderer.apply(&to("10.0.0.3")).expect("another text").is_some());
    }
}
