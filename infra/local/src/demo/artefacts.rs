//! Copies of what a run has made: the buckets are gone when the local cloud ends.

use std::{collections::BTreeMap, fs, path::Path};

use tunesmith_contract::ProjectId;

use super::{pipeline::Follower, summary::Summary};
use crate::{LocalError, state::State};

/// What people look for, by its place below `projects/{project}/`; `{}` stands for the id of run, dataset or index.
const NAMED: [(&str, &str); 8] = [
    ("decision page", "runs/{}/report.html"),
    ("evaluation", "runs/{}/evaluation.json"),
    ("plan and quote", "runs/{}/plan.json"),
    ("metrics", "runs/{}/metrics.jsonl"),
    ("adapter", "runs/{}/adapter"),
    ("dataset", "datasets/{}"),
    ("dataset report", "datasets/{}/report.html"),
    ("index", "indexes/{}"),
];

/// Copies the folders of run, dataset and index (without checkpoints) into `folder`; the paths of what is there.
///
/// # Errors
/// When the workspace cannot be read or the folder cannot be written.
pub async fn save(
    state: &State,
    project: &ProjectId,
    follower: &Follower,
    summary: &Summary,
    folder: &Path,
) -> Result<BTreeMap<String, String>, LocalError> {
    let (aws, bucket) = (state.aws(), state.output("WorkspaceBucket")?);
    let index = follower.results.get("IndexDocuments").and_then(|result| result["index"].as_str());
    let ids = [
        ("runs", summary.run.as_ref().map(ToString::to_string)),
        ("datasets", summary.dataset.as_ref().map(ToString::to_string)),
        ("indexes", index.map(str::to_owned)),
    ];
    let root = format!("projects/{project}/");
    let mut found = BTreeMap::new();
    for (kind, id) in ids.into_iter().filter_map(|(kind, id)| Some((kind, id?))) {
        for key in aws.list_objects(bucket, &format!("{root}{kind}/{id}/")).await? {
            let Some(name) = key.strip_prefix(&root).filter(|name| !name.contains("/checkpoints/")) else { continue };
            let Some(bytes) = aws.get_object(bucket, &key).await? else { continue };
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            fs::create_dir_all(parent).map_err(LocalError::io("make", parent))?;
            fs::write(&path, bytes).map_err(LocalError::io("write", &path))?;
        }
        for (title, place) in NAMED.iter().filter(|(_, place)| place.starts_with(kind)) {
            let path = folder.join(place.replace("{}", &id));
            if path.exists() {
                found.insert((*title).to_owned(), path.display().to_string());
            }
        }
    }
    Ok(found)
}
