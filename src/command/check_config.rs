//! `pgcm check-config`

use std::{error::Error, io, path::Path};

use super::{complain, parts, say};
use crate::{
    config::{Config, load},
    edge::{
        files::{self, FileError},
        streams,
    },
    exit::Exit,
    model::template::{self, Context},
};

pub(super) fn run(path: &Path) -> Exit {
    let config = match load::load(path) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    if let Err(error) = parts::etcd(&config).and_then(|_| Ok(parts::token(&config)?)) {
        return complain(&error, Exit::Usage);
    }
    match missing_templates(&config) {
        Ok(missing) => missing.into_iter().for_each(tell_missing),
        Err(error) => return complain(&*error, Exit::Usage),
    }
    say(format_args!("{} is fine\n", path.display()), Exit::Done)
}

/// Renders every template for an example; returns those that are not there.
///
/// # Errors
/// The first that cannot be read, or does not render.
fn missing_templates(config: &Config) -> Result<Vec<&Path>, Box<dyn Error>> {
    let example = Context::example();
    let mut missing = Vec::new();
    for (place, file) in config.proxy.templates.iter().enumerate() {
        let source = file.source.as_path();
        let name = source.display().to_string();
        match files::read(source) {
            Ok(text) if place == 0 => drop(template::render_pgbouncer(&name, &text, &example)?),
            Ok(text) => drop(template::render(&name, &text, &example)?),
            Err(FileError::Read { source: error, .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                missing.push(source);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(missing)
}

/// No error: a machine without `pgcm proxy` needs none.
fn tell_missing(template: &Path) {
    streams::aside(format_args!(
        "pgcm: there is no {} (`proxy.templates`): make it before `pgcm proxy` starts here",
        template.display()
    ));
}
