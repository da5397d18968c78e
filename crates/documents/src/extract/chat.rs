//! Chat examples: one `{"messages": [{"role": …, "content": …}, …]}` a line.

use tunesmith_contract::documents::{Conversation, Message, QuarantineReason, Role, SkippedLine};

use super::Extracted;

/// At most this many bad lines are listed; the rest are counted in the last entry.
const MAX_LISTED: usize = 100;

/// Reads chat examples. Empty lines are skipped in silence, bad ones are listed with their number and reason.
pub fn extract(text: &str) -> Result<Extracted, QuarantineReason> {
    let mut extracted = Extracted::default();
    let (mut lines, mut unlisted, mut first) = (0, 0u64, None);
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        lines += 1;
        match parse(line) {
            Ok(messages) => extracted.chats.push(messages),
            Err(reason) => {
                let skipped = SkippedLine { line: index as u64 + 1, reason };
                first.get_or_insert_with(|| format!("line {}: {}", skipped.line, skipped.reason));
                if extracted.skipped_lines.len() < MAX_LISTED {
                    extracted.skipped_lines.push(skipped);
                } else {
                    unlisted += 1;
                }
            }
        }
    }
    if extracted.chats.is_empty() {
        return Err(QuarantineReason::NoUsableLine { lines, first: first.unwrap_or_default() });
    }
    if unlisted > 0
        && let Some(last) = extracted.skipped_lines.last_mut()
    {
        last.reason.push_str(&format!(" (and {unlisted} further lines after this one)"));
    }
    Ok(extracted)
}

fn parse(line: &str) -> Result<Vec<Message>, String> {
    let Conversation { messages } = serde_json::from_str(line).map_err(|error| {
        let error = error.to_string();
        // The position inside the line repeats what the list says, and would call every line "line 1".
        error.split(" at line ").next().unwrap_or_default().to_owned()
    })?;
    if let Some(at) = messages.iter().position(|m| m.content.trim().is_empty()) {
        return Err(format!("message {} has no content", at + 1));
    }
    if messages.iter().skip(1).any(|m| m.role == Role::System) {
        return Err("a system message may only stand first".into());
    }
    let turns: Vec<Role> = messages.iter().map(|m| m.role).filter(|r| *r != Role::System).collect();
    let follows = |pair: &[Role]| match pair[0] {
        Role::Assistant => matches!(pair[1], Role::User | Role::Tool),
        Role::Tool => matches!(pair[1], Role::Assistant | Role::Tool),
        Role::User | Role::System => pair[1] == Role::Assistant,
    };
    if turns.first() != Some(&Role::User) {
        return Err("the first turn must be the user's".into());
    }
    if turns.last() != Some(&Role::Assistant) {
        return Err("the last turn must be the assistant's: it is what the model learns".into());
    }
    if !turns.windows(2).all(follows) {
        return Err("user and assistant must take turns; a tool may answer the assistant".into());
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use boon::{Compiler, Schemas};
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn good_lines_are_kept_and_bad_ones_listed() {
        let text = r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}],"id":7}

{"messages":[{"role":"user","content":"Hi"}]}
{"messages":[{"role":"robot","content":"Hi"}]}
not json
{"messages":[{"role":"user","content":" "},{"role":"assistant","content":"x"}]}
{"messages":[{"role":"user","content":"a"},{"role":"user","content":"a"},{"role":"assistant","content":"x"}]}
{"messages":[]}
{"messages":[{"role":"user","content":"a"},{"role":"tool","content":"b"},{"role":"assistant","content":"x"}]}
{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"tool","content":"c"},{"role":"assistant","content":"x"}]}"#;
        let extracted = extract(text).unwrap();
        assert_eq!(extracted.chats.iter().map(Vec::len).collect::<Vec<_>>(), [2, 4]);
        let lines: Vec<u64> = extracted.skipped_lines.iter().map(|s| s.line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7, 8, 9]);
        assert!(extracted.skipped_lines[0].reason.contains("last turn"));
        assert!(extracted.skipped_lines[1].reason.contains("robot"), "{}", extracted.skipped_lines[1].reason);
    }

    #[test]
    fn a_file_without_a_usable_line_says_so() {
        let Err(QuarantineReason::NoUsableLine { lines: 2, first }) = extract("{}\n[]\n") else { panic!() };
        assert!(first.starts_with("line 1: missing field `messages`"), "{first}");
    }

    #[test]
    fn the_schema_takes_what_is_read_and_refuses_all_but_a_wrong_order() {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let url = "http://tunesmith/conversation.schema.json";
        let schema = include_str!("../../../../docs/schemas/conversation.schema.json");
        compiler.add_resource(url, serde_json::from_str(schema).unwrap()).unwrap();
        let index = compiler.compile(url, &mut schemas).unwrap();
        let is_valid =
            |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|value| schemas.validate(&value, index).is_ok());
        let line = |turns: &[(&str, &str)]| {
            let turn = |(role, content): &(&str, &str)| json!({ "role": role, "content": content });
            json!({ "messages": turns.iter().map(turn).collect::<Vec<_>>(), "id": 7 }).to_string()
        };
        let [system, user, assistant, tool] =
            [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("tool", "{}")];

        let sample = include_str!("../../../../docs/sample/customers/questions.jsonl");
        let good = [line(&[user, assistant]), line(&[system, user, assistant, tool, tool, assistant, user, assistant])];
        for line in sample.lines().map(str::to_owned).chain(good) {
            assert!(parse(&line).is_ok() && is_valid(&line), "{line}");
        }

        let disordered: [&[(&str, &str)]; 7] = [
            &[user, user, assistant],
            &[user, tool, assistant],
            &[user, assistant, assistant],
            &[assistant, user, assistant],
            &[user, assistant, user],
            &[user, system, assistant],
            &[system, assistant],
        ];
        for line in disordered.map(line) {
            assert!(parse(&line).is_err() && is_valid(&line), "{line}");
        }

        let bad = [
            line(&[]),
            line(&[user]),
            line(&[user, ("assistant", "")]),
            line(&[user, ("assistant", " \n")]),
            line(&[user, ("robot", "Hello")]),
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant"}]}"#.to_owned(),
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null}]}"#.to_owned(),
            r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "x"}]}"#
                .to_owned(),
            r#"{"messages": null}"#.to_owned(),
            r#"{"prompt": "Hi", "completion": "Hello"}"#.to_owned(),
            "[]".to_owned(),
            "not json".to_owned(),
        ];
        for line in bad {
            assert!(parse(&line).is_err() && !is_valid(&line), "{line}");
        }
    }
}
