//! Which three questions to ask: those that were written for the sample, else made from the documents' own headings.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use tunesmith_contract::documents::ExtractedDocument;

use super::Source;
use crate::{LocalError, paths::Paths, state::State};

const HOW_MANY: usize = 3;

/// For folders with fewer subjects than questions.
const GENERAL: [&str; HOW_MANY] =
    ["What are these documents about?", "What is the most important point?", "What should one know first?"];

/// Chooses the questions.
///
/// # Errors
/// When the file of the sample's questions is broken, or the workspace cannot be read.
pub async fn choose(paths: &Paths, state: &State, source: &Source) -> Result<Vec<String>, LocalError> {
    if source.is_sample {
        let path = paths.root.join("docs/sample-questions.json");
        let text = fs::read_to_string(&path).map_err(LocalError::io("read", &path))?;
        let list: Vec<Value> = serde_json::from_str(&text).map_err(|e| LocalError::BadFile {
            path,
            detail: e.to_string(),
            remedy: "write a list of {\"question\": …}",
        })?;
        let questions = list.iter().filter_map(|item| item["question"].as_str().or(item.as_str()));
        return Ok(questions.take(HOW_MANY).map(str::to_owned).collect());
    }
    let (aws, bucket) = (state.aws(), state.output("WorkspaceBucket")?);
    let prefix = format!("projects/{}/documents/", source.project);
    let mut documents = Vec::new();
    for key in aws.list_objects(bucket, &prefix).await?.into_iter().take(60) {
        if let Some(document) = aws.get_json::<ExtractedDocument>(bucket, &key).await? {
            documents.push(document);
        }
    }
    Ok(from_headings(&documents))
}

/// One question for each of the documents with the most text under a heading of its own; general ones where there are too few.
fn from_headings(documents: &[ExtractedDocument]) -> Vec<String> {
    let mut candidates: Vec<(usize, &str, String)> = Vec::new();
    for document in documents {
        let sections = document.sections.iter().filter(|section| {
            section.headings.last().is_some_and(|heading| (4..=80).contains(&heading.chars().count()))
        });
        let longest = sections.max_by_key(|section| section.text.len().min(4000));
        let (length, subject) =
            match longest.and_then(|section| Some((section.text.len(), section.headings.last()?.clone()))) {
                Some(found) => found,
                None => (0, document.title.clone()),
            };
        candidates.push((length, &document.path, subject));
    }
    candidates.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let mut seen = BTreeSet::new();
    let distinct = candidates.into_iter().filter(|(_, _, subject)| seen.insert(subject.to_lowercase()));
    let about = distinct.map(|(_, _, subject)| format!("What do the documents say about \"{subject}\"?"));
    about.chain(GENERAL.map(str::to_owned)).take(HOW_MANY).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tunesmith_contract::{
        DocumentId,
        documents::{DocumentKind, Section},
    };

    #[test]
    fn questions_are_about_the_longest_sections_and_never_twice_the_same() {
        let document = |path: &str, heading: &str, length: usize| ExtractedDocument {
            id: DocumentId::of(path.as_bytes()),
            path: path.into(),
            kind: DocumentKind::Markdown,
            title: path.into(),
            bytes: 1,
            sections: vec![Section { headings: vec![heading.into()], page: None, text: "x".repeat(length) }],
            chats: Vec::new(),
            skipped_lines: Vec::new(),
        };
        let documents = [
            document("a", "Usage", 10),
            document("b", "usage", 900),
            document("c", "Options", 50),
            document("d", "History", 5),
        ];
        let questions = from_headings(&documents);
        assert_eq!(questions.len(), 3);
        assert!(questions[0].contains("usage") && questions[1].contains("Options"), "{questions:?}");
        let few = from_headings(&documents[..1]);
        assert_eq!((few.len(), few[1].as_str()), (3, GENERAL[0]));
    }
}
