//! The three services that a training machine talks to beside S3, on one loopback port: the table with one lease, Step Functions
//! with one task token, and the machine's metadata. Requests are those of the real SDK, over the wire.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

/// What the services know and what they were told.
#[derive(Default)]
pub struct State {
    /// Attributes of the lease, in DynamoDB's JSON.
    pub lease: Value,
    /// What `spot/instance-action` says.
    pub notice: Option<String>,
    /// Whether the task token is still waited for.
    pub task_gone: bool,
    /// What was told, in order: `heartbeat`, `success …`, `failure NAME …`, `lease STATUS`.
    pub told: Vec<String>,
    /// Requests for the notice without a token.
    pub unauthorised: u32,
}

pub struct Cloud {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
}

impl Cloud {
    pub fn start(lease: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { lease, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { endpoint, state }
    }

    pub fn told(&self) -> Vec<String> {
        self.state.lock().unwrap().told.clone()
    }

    /// One attribute of the lease as text.
    pub fn lease(&self, name: &str) -> String {
        let state = self.state.lock().unwrap();
        let attribute = &state.lease[name];
        let text = attribute["S"].as_str().or_else(|| attribute["N"].as_str()).unwrap_or_default().to_owned();
        attribute["BOOL"].as_bool().map_or(text, |flag| flag.to_string())
    }

    /// The variables that send the SDK here.
    pub fn variables(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.endpoint.clone()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ]
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((request, headers, body)) = read(&mut reader) {
        let (status, answer) = answer(&request, &headers, &body, &mut state.lock().unwrap());
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        let mut stream = &stream;
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes())).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<String>, Vec<u8>)> {
    let (mut request, mut headers) = (String::new(), Vec::new());
    if reader.read_line(&mut request).ok()? == 0 {
        return None;
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        headers.push(line.trim().to_lowercase());
    }
    let length = header(&headers, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((request, headers, body))
}

fn header(headers: &[String], name: &str) -> Option<String> {
    headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_owned()))
}

fn answer(request: &str, headers: &[String], body: &[u8], state: &mut State) -> (u16, String) {
    if request.starts_with("PUT /latest/api/token") {
        let asked = header(headers, "x-aws-ec2-metadata-token-ttl-seconds").is_some();
        return if asked { (200, "the-token".into()) } else { (400, String::new()) };
    }
    if request.starts_with("GET /latest/meta-data/spot/instance-action") {
        if header(headers, "x-aws-ec2-metadata-token").as_deref() != Some("the-token") {
            state.unauthorised += 1;
            return (401, String::new());
        }
        return state.notice.clone().map_or_else(|| (404, String::new()), |notice| (200, notice));
    }
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let target = header(headers, "x-amz-target").unwrap_or_default();
    match target.rsplit('.').next().unwrap_or_default() {
        "updateitem" => update(&body, state),
        "getitem" => (200, json!({"Item": state.lease}).to_string()),
        "sendtaskheartbeat" if state.task_gone => {
            (400, json!({"__type": "TaskTimedOut", "message": "gone"}).to_string())
        }
        "sendtaskheartbeat" => told(state, "heartbeat".into()),
        "sendtasksuccess" => told(state, format!("success {}", body["output"].as_str().unwrap_or_default())),
        "sendtaskfailure" => told(
            state,
            format!(
                "failure {} {}",
                body["error"].as_str().unwrap_or_default(),
                body["cause"].as_str().unwrap_or_default()
            ),
        ),
        other => (400, json!({"__type": "UnknownOperationException", "message": other}).to_string()),
    }
}

fn told(state: &mut State, what: String) -> (u16, String) {
    state.told.push(what);
    (200, "{}".into())
}

/// The two conditional updates that a trainer makes of its lease.
fn update(body: &Value, state: &mut State) -> (u16, String) {
    let values = &body["ExpressionAttributeValues"];
    let condition = body["ConditionExpression"].as_str().unwrap_or_default();
    let status = state.lease["status"]["S"].as_str().unwrap_or_default().to_owned();
    let holds = match condition {
        "#status = :active" => status == "active",
        "attribute_exists(pk) AND #status <> :closed" => !status.is_empty() && status != "closed",
        other => panic!("condition {other:?}"),
    };
    if !holds {
        let kind = "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException";
        return (400, json!({"__type": kind, "message": "The conditional request failed"}).to_string());
    }
    for (placeholder, name) in [
        (":expires", "expires_at"),
        (":metered", "metered"),
        (":closed", "status"),
        (":interrupted", "interrupted"),
        (":ended", "ended_at"),
        (":ttl", "ttl"),
    ] {
        if !values[placeholder].is_null() {
            state.lease[name] = values[placeholder].clone();
        }
    }
    if !values[":closed"].is_null() {
        state.told.push("lease closed".into());
    }
    (200, json!({"Attributes": state.lease}).to_string())
}
