//! Documents to a dataset: cleaned, deduplicated, split, as examples, with an id that is the hash of its content.

use std::collections::BTreeSet;

use tunesmith_contract::{
    documents::{DatasetManifest, Duplicate, Example, ExtractedDocument, SplitSize, UnreadUploads},
    ids::{DatasetId, DocumentId, ProjectId},
    settings::{DataSettings, TrainingSettings},
};

use crate::{
    chunk::{count_words, passages},
    clean::clean_document,
    dedupe::deduplicate,
    jsonl::{compress, write_jsonl},
    questions::questions,
    split::{SplitPlan, Splits, split, words},
};

/// Why there is no dataset, or a stored one cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Fewer words than `data.minimum_words`. A retry cannot help.
    #[error(
        "{words} words in {documents} documents are not enough, {needed} are needed; upload more documents, or lower data.minimum_words in project.toml"
    )]
    NotEnoughText {
        /// Words after cleaning and deduplication.
        words: u64,
        /// `data.minimum_words`.
        needed: u64,
        /// Documents after deduplication.
        documents: u64,
    },
    /// Too little structure to hold a test back: a single paragraph, however long. A retry cannot help.
    #[error("{documents} documents cannot be split into training, validation and test; upload at least 3 documents")]
    CannotSplit {
        /// Documents after deduplication.
        documents: u64,
    },
    /// A line is not the JSON it should be, or an item cannot be written.
    #[error("line {line}: {source}")]
    Json {
        /// Counted from 1; 0 when writing.
        line: u64,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The compressed data is damaged or cut; writing it again helps.
    #[error("compressed data cannot be read or written: {0}; prepare the dataset again")]
    Zstd(std::io::Error),
    /// Unpacks to more than the reader takes.
    #[error("unpacks to more than {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: u64,
    },
}

/// Everything that decides what a dataset looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetPlan {
    /// Fewest words to begin with.
    pub minimum_words: u64,
    /// Share of the words in the validation split.
    pub validation_fraction: f64,
    /// Share of the words in the test split.
    pub test_fraction: f64,
    /// Whether questions are made from headings.
    pub questions_from_headings: bool,
    /// Most words of a passage or an answer.
    pub passage_words: usize,
    /// Decides the split and the phrasings.
    pub seed: u64,
}

impl DatasetPlan {
    /// The plan that a project's settings ask for. Passages are as long as a training sequence holds: small vocabularies need
    /// about 1.6 tokens a word of English, so 0.6 words for each token of the sequence.
    #[must_use]
    pub fn new(data: &DataSettings, training: &TrainingSettings) -> Self {
        Self {
            minimum_words: data.minimum_words,
            validation_fraction: data.validation_fraction,
            test_fraction: data.test_fraction,
            questions_from_headings: data.questions_from_headings,
            passage_words: (training.sequence_length as usize * 6 / 10).max(16),
            seed: training.seed,
        }
    }
}

/// A dataset in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// To learn from.
    pub train: Vec<Example>,
    /// To choose the best checkpoint by.
    pub validation: Vec<Example>,
    /// To measure the result with; never trained on.
    pub test: Vec<Example>,
    /// Documents used, cleaned, sorted by id.
    pub documents: Vec<ExtractedDocument>,
    /// Documents left out as copies, sorted by id.
    pub duplicates: Vec<Duplicate>,
    /// Whether documents were cut for the split, because there are too few of them.
    pub split_by_section: bool,
}

/// The files of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetFiles {
    /// Hash of the three uncompressed splits.
    pub id: DatasetId,
    /// `train.jsonl.zst`
    pub train: Vec<u8>,
    /// `validation.jsonl.zst`
    pub validation: Vec<u8>,
    /// `test.jsonl.zst`
    pub test: Vec<u8>,
}

/// Makes a dataset. The result depends on the content of the documents and the plan alone, not on their order.
///
/// Examples of a document: its passages as text, questions from its headings, and its uploaded chats.
///
/// # Errors
/// [`DatasetError::NotEnoughText`], [`DatasetError::CannotSplit`].
pub fn build_dataset(documents: Vec<ExtractedDocument>, plan: &DatasetPlan) -> Result<Dataset, DatasetError> {
    let mut seen = BTreeSet::new();
    // The same bytes under two names are one document; the smaller name stays, whatever the order.
    let mut documents = documents;
    documents.sort_by(|a, b| (&a.id, &a.path).cmp(&(&b.id, &b.path)));
    documents.retain(|d| seen.insert(d.id.clone()));
    let (documents, duplicates) = deduplicate(documents.into_iter().map(clean_document).collect());
    let count: u64 = documents.iter().map(|d| words(d) as u64).sum();
    let num_documents = documents.len() as u64;
    if count < plan.minimum_words {
        return Err(DatasetError::NotEnoughText { words: count, needed: plan.minimum_words, documents: num_documents });
    }
    let shares = SplitPlan { validation: plan.validation_fraction, test: plan.test_fraction, seed: plan.seed };
    let Splits { train, validation, test, by_section } = split(documents.clone(), &shares);
    let examples =
        |documents: &[ExtractedDocument]| documents.iter().flat_map(|d| examples(d, plan)).collect::<Vec<_>>();
    let dataset = Dataset {
        train: examples(&train),
        validation: examples(&validation),
        test: examples(&test),
        documents,
        duplicates,
        split_by_section: by_section,
    };
    if [&dataset.train, &dataset.validation, &dataset.test].iter().any(|split| split.is_empty()) {
        return Err(DatasetError::CannotSplit { documents: num_documents });
    }
    Ok(dataset)
}

fn examples(document: &ExtractedDocument, plan: &DatasetPlan) -> Vec<Example> {
    let text = passages(document, plan.passage_words)
        .into_iter()
        .map(|text| Example::Text { text, document: document.id.clone() });
    let asked =
        if plan.questions_from_headings { questions(document, plan.passage_words, plan.seed) } else { Vec::new() };
    let chats = asked.into_iter().chain(document.chats.iter().cloned());
    text.chain(chats.map(|messages| Example::Chat { messages, document: document.id.clone() })).collect()
}

impl Dataset {
    /// The three splits as files, and the id.
    ///
    /// # Errors
    /// [`DatasetError::Zstd`] when memory runs out.
    pub fn files(&self) -> Result<DatasetFiles, DatasetError> {
        let [train, validation, test] =
            [write_jsonl(&self.train)?, write_jsonl(&self.validation)?, write_jsonl(&self.test)?];
        let id = DatasetId::of(&[&train, &validation, &test]);
        Ok(DatasetFiles { id, train: compress(&train)?, validation: compress(&validation)?, test: compress(&test)? })
    }

    /// The manifest that lies beside the files.
    #[must_use]
    pub fn manifest(&self, id: &DatasetId, project: &ProjectId, quarantined: u64) -> DatasetManifest {
        DatasetManifest {
            dataset: id.clone(),
            project: project.clone(),
            train: size(&self.train),
            validation: size(&self.validation),
            test: size(&self.test),
            documents: self.documents.iter().map(|d| d.id.clone()).collect(),
            duplicates: self.duplicates.clone(),
            quarantined,
            unread: UnreadUploads::default(),
        }
    }
}

/// Counts a split.
#[must_use]
pub fn size(examples: &[Example]) -> SplitSize {
    let documents: BTreeSet<&DocumentId> = examples.iter().map(Example::document).collect();
    let mut size =
        SplitSize { documents: documents.len() as u64, examples: examples.len() as u64, ..SplitSize::default() };
    for text in examples.iter().flat_map(texts) {
        size.words += count_words(text) as u64;
        size.bytes += text.len() as u64;
    }
    size
}

/// The texts of one example.
pub(crate) fn texts(example: &Example) -> Vec<&str> {
    match example {
        Example::Text { text, .. } => vec![text],
        Example::Chat { messages, .. } => messages.iter().map(|m| m.content.as_str()).collect(),
    }
}
