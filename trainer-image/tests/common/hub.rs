//! What hf-hub asks of huggingface.co, on two loopback ports: the hub, and the store that it sends everybody to for large files.
//!
//! The answers are those that the real one gives: a listing with sizes; small files behind a relative redirect to
//! `/api/resolve-cache/` (<https://github.com/huggingface/swift-transformers/pull/209>), those of private and gated models directly;
//! large ones behind an absolute redirect with `x-linked-etag` and `x-repo-commit`; and 401 for what may not be seen, with
//! `x-error-message` (<https://github.com/huggingface/huggingface_hub/pull/1202>).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tunesmith_contract::DocumentId;

/// The token that may read everything.
pub const TOKEN: &str = "hf_may_read";

/// Who may see a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Open,
    /// Who has the token; others do not learn that it exists.
    Private,
    /// Everybody its listing, its files who has the token.
    Gated,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub enum Trouble {
    #[default]
    Nothing,
    /// Every answer of the hub has this status.
    Status(u16),
    /// A connection ends after so many bytes of a file.
    Cut(usize),
    /// A file comes whole, whatever part of it was asked for.
    Whole,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    store: String,
    models: BTreeMap<String, Model>,
    trouble: Trouble,
    num_asked: usize,
    downloads: Vec<(String, usize)>,
}

#[derive(Clone)]
struct Model {
    access: Access,
    commit: String,
    files: BTreeMap<String, File>,
}

#[derive(Clone)]
struct File {
    bytes: Arc<Vec<u8>>,
    /// SHA-256, as the hub has it of large files; of small ones it has git's SHA-1, for which the first 40 digits stand in.
    hash: String,
}

impl Hub {
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let hub = listen("127.0.0.1:0", State::hub, &state);
        // under another name, as the real one: tokens do not follow a redirect there
        let store = listen("localhost:0", State::store, &state);
        state.lock().unwrap().store = format!("http://localhost:{}", store.port());
        Self { endpoint: format!("http://{hub}"), state }
    }

    /// Puts a model there, or its next commit; returns the commit.
    pub fn put(&self, id: &str, access: Access, files: &BTreeMap<String, Vec<u8>>) -> String {
        let hashed = |bytes: &Vec<u8>| File { bytes: Arc::new(bytes.clone()), hash: DocumentId::of(bytes).to_string() };
        let files: BTreeMap<String, File> = files.iter().map(|(name, bytes)| (name.clone(), hashed(bytes))).collect();
        let content: String = files.iter().map(|(name, file)| format!("{name} {}\n", file.hash)).collect();
        let commit = DocumentId::of(content.as_bytes()).to_string()[..40].to_owned();
        let model = Model { access, commit: commit.clone(), files };
        self.state.lock().unwrap().models.insert(id.to_owned(), model);
        commit
    }

    pub fn trouble(&self, trouble: Trouble) {
        self.state.lock().unwrap().trouble = trouble;
    }

    /// How many requests came to the hub, since this was last asked.
    pub fn num_asked(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().num_asked)
    }

    /// Files that were sent, or begun to be, and from which byte on, since this was last asked.
    pub fn downloads(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.state.lock().unwrap().downloads)
    }
}

fn listen(address: &str, answer: fn(&mut State, &Request) -> Answer, state: &Arc<Mutex<State>>) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    let state = state.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            std::thread::spawn(move || {
                if let Some(request) = Request::read(&stream) {
                    let answer = answer(&mut state.lock().unwrap(), &request);
                    // the trainer may have gone
                    let _ = answer.write(&stream);
                }
            });
        }
    });
    bound
}

struct Request {
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let (path, query) = first.split(' ').nth(1).map(|target| target.split_once('?').unwrap_or((target, "")))?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line.ok()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
        Some(Self { path: path.to_owned(), query: query.to_owned(), headers })
    }

    fn token(&self) -> Option<&str> {
        self.headers.get("authorization")?.strip_prefix("Bearer ")
    }

    /// First byte and last, when one is named.
    fn range(&self) -> (usize, Option<usize>) {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        range.map_or((0, None), |(first, last)| (first.parse().unwrap_or(0), last.parse().ok()))
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// How much of the body is sent before the connection ends.
    sent: usize,
}

impl Answer {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        let sent = body.len();
        Self { status, headers, body, sent }
    }

    fn error(status: u16, message: &str, code_opt: Option<&str>) -> Self {
        let mut headers = vec![("x-error-message", message.to_owned())];
        headers.extend(code_opt.map(|code| ("x-error-code", code.to_owned())));
        Self::new(status, headers, json!({"error": message}).to_string().into_bytes())
    }

    fn redirect(status: u16, to: String, mut headers: Vec<(&'static str, String)>) -> Self {
        let body = format!("Redirecting to {to}").into_bytes();
        headers.push(("location", to));
        Self::new(status, headers, body)
    }

    fn write(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("connection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body[..self.sent])
    }
}

impl State {
    /// As huggingface.co.
    fn hub(&mut self, request: &Request) -> Answer {
        self.num_asked += 1;
        if let Trouble::Status(status) = self.trouble {
            return Answer::error(status, "Internal Error - We're working hard to fix this as soon as possible!", None);
        }
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let answer = match parts.as_slice() {
            ["api", "models", owner, name, "revision", revision] => self
                .model(&format!("{owner}/{name}"), revision, request)
                .map(|model| listing(owner, name, &model, request)),
            ["api", "resolve-cache", "models", owner, name, commit, file @ ..] => self
                .file(&format!("{owner}/{name}"), commit, &file.join("/"), request)
                .map(|(model, file)| self.bytes(&parts[6..].join("/"), &file, Some(&model.commit), request)),
            [owner, name, "resolve", revision, file @ ..] => {
                self.resolve(&format!("{owner}/{name}"), revision, &file.join("/"), request)
            }
            _ => Err(Answer::error(404, "Sorry, we can't find the page you are looking for.", None)),
        };
        answer.unwrap_or_else(|refused| refused)
    }

    /// As the store of large files, which knows them by their hash.
    fn store(&mut self, request: &Request) -> Answer {
        let hash = request.path.trim_start_matches('/');
        let mut files = self.models.values().flat_map(|model| model.files.iter());
        let found = files.find(|(_, file)| file.hash == hash).map(|(name, file)| (name.clone(), file.clone()));
        match found {
            Some((name, file)) => self.bytes(&name, &file, None, request),
            None => Answer::error(403, "AccessDenied", None),
        }
    }

    /// The model, for those who may know of it.
    fn model(&self, id: &str, revision: &str, request: &Request) -> Result<Model, Answer> {
        let token = request.token();
        if token.is_some_and(|token| token != TOKEN) {
            return Err(Answer::error(401, "Invalid credentials in Authorization header", None));
        }
        match self.models.get(id) {
            Some(model) if model.access != Access::Private || token.is_some() => {
                if revision == "main" || revision == model.commit {
                    Ok(model.clone())
                } else {
                    Err(Answer::error(404, &format!("Invalid rev id: {revision}"), Some("RevisionNotFound")))
                }
            }
            _ if token.is_some() => Err(Answer::error(404, "Repository not found", Some("RepoNotFound"))),
            _ => Err(Answer::error(401, "Invalid username or password.", None)),
        }
    }

    /// A file of it, for those who may read it.
    fn file(&self, id: &str, revision: &str, name: &str, request: &Request) -> Result<(Model, File), Answer> {
        let model = self.model(id, revision, request)?;
        if model.access == Access::Gated && request.token().is_none() {
            let message = format!(
                "Access to model {id} is restricted. You must have access to it and be authenticated to access it. Please log in."
            );
            return Err(Answer::error(401, &message, Some("GatedRepo")));
        }
        match model.files.get(name).cloned() {
            Some(file) => Ok((model, file)),
            None => Err(Answer::error(404, "Entry not found", Some("EntryNotFound"))),
        }
    }

    fn resolve(&mut self, id: &str, revision: &str, name: &str, request: &Request) -> Result<Answer, Answer> {
        let (model, file) = self.file(id, revision, name, request)?;
        let commit = ("x-repo-commit", model.commit.clone());
        if is_large(name) {
            let to = format!("{}/{}?X-Amz-Signature=0123456789abcdef", self.store, file.hash);
            let linked = vec![
                commit,
                ("x-linked-etag", format!("\"{}\"", file.hash)),
                ("x-linked-size", file.bytes.len().to_string()),
            ];
            return Ok(Answer::redirect(302, to, linked));
        }
        if model.access == Access::Open {
            let etag = &file.hash[..40];
            let to = format!("/api/resolve-cache/models/{id}/{}/{name}?etag=%22{etag}%22", model.commit);
            return Ok(Answer::redirect(307, to, vec![commit]));
        }
        Ok(self.bytes(name, &file, Some(&model.commit), request))
    }

    /// The part of a file that was asked for.
    fn bytes(&mut self, name: &str, file: &File, commit_opt: Option<&str>, request: &Request) -> Answer {
        let (first, last_opt) = request.range();
        let length = file.bytes.len();
        // `bytes=0-0` asks for the size
        let is_download = last_opt.is_none();
        if is_download {
            self.downloads.push((name.to_owned(), first));
        }
        let hash = if is_large(name) { &file.hash[..] } else { &file.hash[..40] };
        let mut headers = vec![("etag", format!("\"{hash}\"")), ("accept-ranges", "bytes".to_owned())];
        headers.extend(commit_opt.map(|commit| ("x-repo-commit", commit.to_owned())));
        if is_download && matches!(self.trouble, Trouble::Whole) {
            return Answer::new(200, headers, file.bytes.to_vec());
        }
        if first >= length {
            headers.push(("content-range", format!("bytes */{length}")));
            return Answer::new(416, headers, Vec::new());
        }
        let end = last_opt.map_or(length, |last| length.min(last + 1));
        headers.push(("content-range", format!("bytes {first}-{}/{length}", end - 1)));
        let mut answer = Answer::new(206, headers, file.bytes[first..end].to_vec());
        if let Trouble::Cut(bytes) = self.trouble {
            answer.sent = answer.sent.min(bytes);
        }
        answer
    }
}

/// What the hub's `.gitattributes` sends to the store, of the files that are here.
fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn listing(owner: &str, name: &str, model: &Model, request: &Request) -> Answer {
    let with_sizes = request.query.split('&').any(|part| part == "blobs=true");
    let sibling = |(name, file): (&String, &File)| -> Value {
        let size = file.bytes.len();
        match (with_sizes, is_large(name)) {
            (false, _) => json!({"rfilename": name}),
            (true, false) => json!({"rfilename": name, "size": size, "blobId": file.hash[..40]}),
            (true, true) => json!({"rfilename": name, "size": size, "blobId": file.hash[24..],
                "lfs": {"sha256": file.hash, "size": size, "pointerSize": 134}}),
        }
    };
    let id = format!("{owner}/{name}");
    let body = json!({
        "_id": "621ffdc136468d709f17ddb4",
        "id": id,
        "modelId": id,
        "author": owner,
        "sha": model.commit,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "private": model.access == Access::Private,
        "gated": if model.access == Access::Gated { json!("manual") } else { json!(false) },
        "disabled": false,
        "downloads": 0,
        "likes": 0,
        "siblings": model.files.iter().map(sibling).collect::<Vec<_>>(),
    });
    Answer::new(
        200,
        vec![("content-type", "application/json; charset=utf-8".to_owned())],
        body.to_string().into_bytes(),
    )
}
