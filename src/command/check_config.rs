//! `pgcm check-config`

use std::{io, path::Path};

use super::{complain, parts, say};
use crate::{
    config::{Config, load},
    edge::{
        files::{self, FileError},
        streams,
    },
    exit::Exit,
    model::template::{self, TemplateError},
};

#[derive(Debug, thiserror::Error)]
enum RehearsalError {
    #[error("`proxy.templates` names a file that cannot be used")]
    Read(#[source] FileError),
    #[error(
        "`pgcm proxy` could not use a template for every cluster; tried on pg01 with and without its standby pg02"
    )]
    Template(#[source] TemplateError),
}

pub(super) fn run(path: &Path) -> Exit {
    let config = match load::load(path) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    if let Err(error) = parts::etcd(&config).and_then(|_| Ok(parts::token(&config)?)) {
        return complain(&error, Exit::Usage);
    }
    match rehearse(&config) {
        Ok(missing) => missing.into_iter().for_each(tell_missing),
        Err(error) => return complain(&error, Exit::Usage),
    }
    say(format_args!("{} is fine\n", path.display()), Exit::Done)
}

/// Renders every template for examples; returns those that are not there.
fn rehearse(config: &Config) -> Result<Vec<&Path>, RehearsalError> {
    let mut missing = Vec::new();
    for (place, file) in config.proxy.templates.iter().enumerate() {
        let source = file.source.as_path();
        match files::read(source) {
            Ok(text) => template::rehearse(&source.display().to_string(), &text, place == 0)
                .map_err(RehearsalError::Template)?,
            Err(FileError::Read { source: error, .. })
                if error.kind() == io::ErrorKind::NotFound =>
            {
                missing.push(source);
            }
            Err(error) => return Err(RehearsalError::Read(error)),
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
