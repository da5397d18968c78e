//! Mails to a project's owner. No I/O.

use crate::refusal::SINGLE_MAILS;
use tunesmith_contract::{ProjectId, documents::QuarantineRecord, keys::KeyError, settings::SettingsError};

/// Subject and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// One line.
    pub subject: String,
    /// Plain text.
    pub body: String,
}

/// A file was refused. `path` is its name; another file with the same content may have been refused first.
#[must_use]
pub fn quarantined(record: &QuarantineRecord, path: &str) -> Mail {
    Mail {
        subject: format!("Tunesmith {}: {path} was refused", record.project),
        body: format!(
            "File:    {}/{}\nReason:  {}\nRemedy:  {}\n\nAll other files of the project go on. The record of this refusal is \
             projects/{}/quarantine/{}.json in the workspace bucket.\n",
            record.project, path, record.message, record.remedy, record.project, record.id
        ),
    }
}

/// More files are refused than are mailed one by one.
#[must_use]
pub fn many_quarantined(project: &ProjectId) -> Mail {
    Mail {
        subject: format!("Tunesmith {project}: many files are refused"),
        body: format!(
            "More than {SINGLE_MAILS} files of {project} were refused within an hour. To spare you a mail for each, no more are \
             sent until the hour is over.\n\nEvery refused file has a record with reason and remedy below \
             projects/{project}/quarantine/ in the workspace bucket, and a line in the report of the next dataset \
             (projects/{project}/datasets/<dataset>/report.html). All other files of the project go on.\n"
        ),
    }
}

/// `project.toml` cannot be used.
#[must_use]
pub fn settings_invalid(project: &ProjectId, error: &SettingsError) -> Mail {
    Mail {
        subject: format!("Tunesmith {project}: project.toml is wrong"),
        body: format!(
            "{error}\n\nNo training starts until {project}/project.toml is corrected and uploaded again. \
             docs/configuration.md lists every key.\n"
        ),
    }
}

/// A file lies outside every project folder.
#[must_use]
pub fn misplaced(error: &KeyError) -> Mail {
    Mail {
        subject: "Tunesmith: a file lies outside every project folder".to_owned(),
        body: format!("{error}\n\nThe file was left alone.\n"),
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::{DocumentId, ProjectSettings, documents::QuarantineReason};

    use super::*;

    #[test]
    fn a_refusal_names_file_reason_and_remedy() {
        let record = tunesmith_documents::quarantine_record(
            DocumentId::of(b"x"),
            "handbook".parse().unwrap(),
            "Fahrgäste + Hunde.pdf",
            QuarantineReason::Encrypted,
        );
        let mail = quarantined(&record, &record.path);
        assert!(mail.subject.contains("Fahrgäste + Hunde.pdf"));
        for part in ["handbook/Fahrgäste + Hunde.pdf", "protected by a password", "save a copy without a password"] {
            assert!(mail.body.contains(part), "{}", mail.body);
        }
    }

    #[test]
    fn wrong_settings_are_told_with_key_and_line() {
        let error = ProjectSettings::from_toml("[training]\nrnak = 8\n").unwrap_err();
        let mail = settings_invalid(&"handbook".parse().unwrap(), &error);
        assert!(mail.body.contains("line 2") && mail.body.contains("rnak"), "{}", mail.body);
    }
}
