//! A base model from the Hugging Face hub, by its id.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};
use serde::Deserialize;
use tunesmith_contract::job::BaseSource;
use tunesmith_model::weights::{INDEX, SINGLE};

use crate::{
    base::{COMPANIONS, complete, unknown},
    error::{Result, TrainerError},
    store::Entry,
};

/// How often the hub is asked before it counts as down. hf-hub's own retries are left alone: they append to what a run before had
/// of a file as if it were nothing, and call the last of them a failure though it succeeds (0.4.3, `download_tempfile`).
const ATTEMPTS: u32 = 4;

/// hf-hub's own, doubled each time: two seconds in all. A hub that is down for longer is the state machine's to wait for.
const FIRST_WAIT: Duration = Duration::from_millis(300);

/// Fetches by id, into the cache that all programs of Hugging Face share ([`hub_cache`]), with the token in `HF_TOKEN`, else the one
/// that `hf auth login` stored. Every file is of the commit that the hub shows first, and as long as it says.
pub(crate) fn from_hub(source: &BaseSource, cache: &Path) -> Result<PathBuf> {
    let hub = Hub::open(source, hub_cache(cache))?;
    let listing = hub.listing()?;
    let entry = |file: &Sibling| Entry { name: file.rfilename.clone(), bytes: file.size.unwrap_or_default() };
    complete(source, &listing.siblings.iter().map(entry).collect::<Vec<_>>())?;
    tracing::info!(base = %source.name, commit = %listing.sha, "fetching the base model, or what is missing of it, from the hub");
    // what another program has fetched of this commit is found by this mark
    let mark = hub.cache.repo(hub.at(&listing.sha)).create_ref(&listing.sha);
    mark.map_err(TrainerError::io(hub.cache.path()))?;
    for name in COMPANIONS.iter().skip(1).filter(|name| listing.file(name).is_some()) {
        hub.get(&listing, name)?;
    }
    if listing.file(SINGLE).is_some() {
        hub.get(&listing, SINGLE)?;
    } else {
        let index = hub.get(&listing, INDEX)?;
        for name in shards(source, &index)? {
            hub.get(&listing, &name)?;
        }
    }
    let config = hub.get(&listing, COMPANIONS[0])?;
    config.parent().map(Path::to_path_buf).ok_or_else(|| unknown(source, "the hub's cache has no folder".into()))
}

/// `HF_HOME`, else `~/.cache/huggingface`; below `cache` when there is no home folder that can be written.
fn hub_cache(cache: &Path) -> Cache {
    // what somebody set is taken, or fails
    if let Some(home) = setting("HF_HOME") {
        return Cache::new(PathBuf::from(home).join("hub"));
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/huggingface/hub"));
    let shared = home.filter(|folder| fs::create_dir_all(folder).is_ok());
    Cache::new(shared.unwrap_or_else(|| cache.join("hub")))
}

/// A variable that is set to something.
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Names of the files with weights that the index names: some models call them otherwise than `model-00001-of-…`, and some keep the
/// same weights once more beside them.
fn shards(source: &BaseSource, index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(TrainerError::io(index))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| unknown(source, format!("{INDEX} cannot be read: {error}")))?;
    // only the last part of a name, as `tunesmith_model::weights::files` reads them
    Ok(index.weight_map.values().filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect())
}

/// What the hub says of a model at one commit.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    /// In bytes; a mirror may leave it out.
    #[serde(default)]
    size: Option<u64>,
}

impl Listing {
    fn file(&self, name: &str) -> Option<&Sibling> {
        self.siblings.iter().find(|file| file.rfilename == name)
    }
}

/// One model on the hub, and the hub's cache on this machine.
struct Hub<'a> {
    source: &'a BaseSource,
    cache: Cache,
    api: Api,
}

impl<'a> Hub<'a> {
    fn open(source: &'a BaseSource, cache: Cache) -> Result<Self> {
        let mut builder = ApiBuilder::from_cache(cache.clone()).with_progress(false);
        if let Some(endpoint) = setting("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        // of itself hf-hub reads the stored token only
        if let Some(token) = setting("HF_TOKEN") {
            builder = builder.with_token(Some(token));
        }
        let down = |error: ApiError| TrainerError::Hub { name: source.name.clone(), detail: error.to_string() };
        Ok(Self { source, cache, api: builder.build().map_err(down)? })
    }

    /// The model at a commit, or at the tip of a branch.
    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.source.name.to_string(), RepoType::Model, revision.to_owned())
    }

    /// What the hub has of the model now.
    fn listing(&self) -> Result<Listing> {
        let repo = self.api.repo(self.at("main"));
        let ask = || -> Result<Listing, ApiError> {
            // `blobs` asks for the sizes
            let answer = repo.info_request().query("blobs", "true").call().map_err(Box::new)?;
            let text = answer.into_string()?;
            serde_json::from_str(&text).map_err(|error| ApiError::IoError(error.into()))
        };
        patiently(|| ask().map_err(|error| self.failed(error)))
    }

    /// One file of the listing: from the cache when it is there, else downloaded, from where the last attempt ended.
    fn get(&self, listing: &Listing, name: &str) -> Result<PathBuf> {
        let missing = || unknown(self.source, format!("{name} is missing, though the hub's other files name it"));
        let size = listing.file(name).ok_or_else(missing)?.size;
        let repo = self.api.repo(self.at(&listing.sha));
        patiently(|| {
            let path = match repo.get(name) {
                Ok(path) => path,
                Err(error) => {
                    if has_no_rest(&error) {
                        self.drop_unfinished()?;
                    }
                    return Err(self.failed(error));
                }
            };
            // hf-hub does not look: a server that answers with the whole file where its rest was asked for makes it too long
            let found = fs::metadata(&path).map_err(TrainerError::io(&path))?.len();
            match size {
                Some(bytes) if bytes != found => {
                    // only the link: what it leads to is replaced when the file comes again
                    fs::remove_file(&path).map_err(TrainerError::io(&path))?;
                    Err(self.down(format!("{name} has {found} bytes, the hub says {bytes}")))
                }
                _ => Ok(path),
            }
        })
    }

    /// Unfinished files that cannot be continued would be tried for ever. A process that is writing one begins it anew.
    fn drop_unfinished(&self) -> Result<()> {
        let blobs = self.cache.path().join(self.at("main").folder_name()).join("blobs");
        for file in fs::read_dir(blobs).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(TrainerError::io(path))?;
            }
        }
        Ok(())
    }

    fn down(&self, detail: String) -> TrainerError {
        TrainerError::Hub { name: self.source.name.clone(), detail }
    }

    fn failed(&self, error: ApiError) -> TrainerError {
        match error {
            ApiError::RequestError(request) => match *request {
                ureq::Error::Status(status @ (401 | 403 | 404), answer) => {
                    unknown(self.source, refusal(status, &answer))
                }
                ureq::Error::Status(status, _) => self.down(format!("it answers with status {status}")),
                ureq::Error::Transport(transport) => self.down(reason(&transport)),
            },
            // no repetition mends these
            ApiError::IoError(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::ReadOnlyFilesystem
                        | io::ErrorKind::StorageFull
                ) =>
            {
                TrainerError::io(self.cache.path())(error)
            }
            ApiError::LockAcquisition(lock) => {
                self.down(format!("another process is downloading it, {} is locked", lock.display()))
            }
            error => self.down(error.to_string()),
        }
    }
}

/// Again and again while the hub is what fails: another attempt may succeed.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut wait = FIRST_WAIT;
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error @ TrainerError::Hub { .. }) => {
                tracing::warn!(%error, wait_seconds = wait.as_secs_f64(), "the hub is asked again");
            }
            ended => return ended,
        }
        std::thread::sleep(wait);
        wait *= 2;
    }
    attempt()
}

/// Whether an unfinished file is as long as the whole one, or longer: a process was killed between its last byte and its name.
fn has_no_rest(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(request) => matches!(request.as_ref(), ureq::Error::Status(416, _)),
        _ => false,
    }
}

/// The hub answers 401 for ids that do not exist, lest private ones be found by guessing; in a header it says more.
fn refusal(status: u16, answer: &ureq::Response) -> String {
    let said = answer.header("x-error-message").map(|text| format!(" ({text})")).unwrap_or_default();
    format!(
        "the hub answers {status}{said}: it has no such model, or shows it only to some; to fetch a private or gated one, set \
         HF_TOKEN to a token that may read it"
    )
}

/// Without the path and the query: the addresses of large files are signed, and logs hold no secrets.
fn reason(transport: &ureq::Transport) -> String {
    let host = transport.url().and_then(|url| url.host_str()).unwrap_or("the hub");
    let kind = transport.kind().to_string();
    let parts = [Some(kind), transport.message().map(str::to_owned), transport.source().map(ToString::to_string)];
    format!("{host}: {}", parts.into_iter().flatten().collect::<Vec<_>>().join(": "))
}
