//! Base backups: whole, half-finished, or robbed of their label.

/// How the data directory became what `backup_label` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `pg_basebackup`, or another tool over the non-exclusive functions.
    Streamed,
    /// `pg_rewind`, which writes a label when all files are copied.
    Rewind,
    /// The exclusive functions that Postgres had up to 14: their label is in the primary's own
    /// directory as well, and stays there when it crashes.
    Exclusive,
}

impl Method {
    /// Reads the text of `backup_label`; methods that are not known count as streamed.
    pub fn of_label(text: &str) -> Self {
        let said = text.lines().find_map(|line| line.strip_prefix("BACKUP METHOD: "));
        match said.map(str::trim) {
            Some("pg_rewind") => Self::Rewind,
            Some("pg_start_backup") => Self::Exclusive,
            _ => Self::Streamed,
        }
    }
}

/// What is found in a data directory whose server does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// `backup_label`, which the first start renames.
    pub label: Option<Method>,
    /// `backup_label.old`, which that start leaves.
    pub old_label: bool,
    /// `backup_manifest`, which `pg_basebackup` renames into place when all else is written.
    pub manifest: bool,
    /// `backup_manifest.tmp`, its name until then.
    pub unfinished_manifest: bool,
    /// `global/pg_control`, which a base backup sends last.
    pub control: bool,
    /// The control file is older than the manifest: no server has run here since the backup.
    pub never_ran: bool,
}

/// Why the files cannot be started; `None` when they can.
pub fn unusable(files: Files) -> Option<&'static str> {
    match files {
        Files { control: false, label: Some(_), .. } => {
            Some("a half-finished base backup: global/pg_control, which is copied last, is missing")
        }
        Files { control: false, .. } => Some("incomplete: global/pg_control is missing"),
        Files {
            label: Some(Method::Streamed), manifest: false, unfinished_manifest: true, ..
        } => Some("a half-finished base backup: pg_basebackup did not get to its end"),
        // Without its label a backup would start where its control file says, and be torn.
        Files { label: None, old_label: false, manifest: true, never_ran: true, .. } => {
            Some("a base backup whose backup_label was removed")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED: Files = Files {
        label: None,
        old_label: true,
        manifest: true,
        unfinished_manifest: false,
        control: true,
        never_ran: false,
    };

    #[test]
    fn half_a_backup_is_told_from_a_whole_one() {
        let fresh =
            Files { label: Some(Method::Streamed), old_label: false, never_ran: true, ..STARTED };
        let by_other_tools = Files { manifest: false, never_ran: false, ..fresh };
        for (name, files, expected) in [
            ("in use", STARTED, None),
            ("made by initdb", Files { old_label: false, manifest: false, ..STARTED }, None),
            ("fresh", fresh, None),
            ("restored by another tool", by_other_tools, None),
            ("killed early", Files { control: false, manifest: false, ..fresh }, Some("half")),
            (
                "killed while it waited for WAL",
                Files { manifest: false, unfinished_manifest: true, ..fresh },
                Some("half"),
            ),
            ("lost its control file", Files { control: false, ..STARTED }, Some("incomplete")),
            ("lost its label", Files { label: None, ..fresh }, Some("label was removed")),
            ("rewound", Files { label: Some(Method::Rewind), manifest: false, ..STARTED }, None),
        ] {
            let why = unusable(files);
            let fits = match (why, expected) {
                (Some(why), Some(words)) => why.contains(words),
                (why, expected) => why == expected,
            };
            assert!(fits, "{name}: {why:?}");
        }
    }

    #[test]
    fn a_label_tells_its_method() {
        let label = |method| format!("START WAL LOCATION: 0/9000028\nBACKUP METHOD: {method}\n");
        assert_eq!(Method::of_label(&label("streamed")), Method::Streamed);
        assert_eq!(Method::of_label(&label("pg_rewind")), Method::Rewind);
        assert_eq!(Method::of_label(&label("pg_start_backup")), Method::Exclusive);
        assert_eq!(Method::of_label(""), Method::Streamed);
    }
}
