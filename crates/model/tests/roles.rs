//! Masks of other roles than the assistant equal `transformers`. Goldens: `tests/parity/make-role-goldens.py`.

// helpers of a test may unwrap as the test itself may
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use serde::Deserialize;
use tunesmith_model::{Message, ModelError, Role, Tokenizer, encode_conversation};

#[derive(Deserialize)]
struct Case {
    messages: Vec<Message>,
    train_on: Vec<Role>,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

fn tokenizer(name: &str) -> (Tokenizer, Vec<Case>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens/roles").join(name);
    let cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    (Tokenizer::load(&folder).unwrap(), cases)
}

/// What counts, spelled out.
fn counted(tokenizer: &Tokenizer, messages: &[(&str, &str)], train_on: &[Role]) -> String {
    let messages: Vec<Message> = messages.iter().map(|(role, content)| Message::new(role, content)).collect();
    let tokens = encode_conversation(tokenizer, &messages, train_on).unwrap();
    let ids: Vec<u32> =
        tokens.ids.iter().zip(&tokens.counted).filter(|(_, counted)| **counted).map(|(id, _)| *id).collect();
    let spelled = |id: &u32| match tokenizer.terminators().contains(id) {
        true => "¶".to_owned(),
        false => tokenizer.decode(&[*id]).unwrap(),
    };
    ids.iter().map(spelled).collect()
}

#[test]
fn masks_of_every_choice_of_roles_equal_transformers() {
    for (name, num_cases) in [("tools", 18), ("inst", 12)] {
        let (tokenizer, cases) = tokenizer(name);
        assert_eq!(cases.len(), num_cases);
        for case in cases {
            let tokens = encode_conversation(&tokenizer, &case.messages, &case.train_on).unwrap();
            assert_eq!(tokens.ids, case.ids, "{name} {:?}", case.messages);
            let wanted: Vec<bool> = case.mask.iter().map(|mask| *mask == 1).collect();
            assert_eq!(tokens.counted, wanted, "{name} {:?} {:?}", case.train_on, case.messages);
        }
    }
}

#[test]
fn every_role_counts_alone_and_together_with_its_terminator() {
    let (tokenizer, _) = tokenizer("tools");
    let chat = [
        ("system", " be kind"),
        ("user", "one "),
        ("assistant", "two"),
        ("tool", " three"),
        ("assistant", "four"),
        ("user", "five"),
    ];
    let of = |train_on: &[Role]| counted(&tokenizer, &chat, train_on);
    assert_eq!(of(&[Role::Assistant]), "two¶four¶");
    assert_eq!(of(&[Role::User]), "one¶five¶");
    assert_eq!(of(&[Role::System]), "be kind¶");
    // the closing tag stands between what a tool gave back and the terminator, and nobody has to generate either
    assert_eq!(of(&[Role::Tool]), "three");
    assert_eq!(of(&[Role::System, Role::User, Role::Assistant, Role::Tool]), "be kind¶one¶two¶threefour¶five¶");
    assert_eq!(of(&[]), "");
}

#[test]
fn instructions_inside_the_first_turn_of_the_user_are_found_there() {
    let (tokenizer, _) = tokenizer("inst");
    let chat = [("system", "be kind "), ("user", " one"), ("assistant", "two "), ("user", "three")];
    let of = |train_on: &[Role]| counted(&tokenizer, &chat, train_on);
    assert_eq!(of(&[Role::System]), "be kind");
    assert_eq!(of(&[Role::User]), "onethree");
    assert_eq!(of(&[Role::Assistant]), " two ¶");
}

#[test]
fn a_turn_that_the_template_repeats_is_refused_by_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/goldens/roles/tools");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
    }
    let template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{{ messages[0].content }}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let messages = [Message::new("user", "a"), Message::new("user", "b")];
    let error = encode_conversation(&tokenizer, &messages, &[Role::User]).unwrap_err();
    assert!(matches!(error, ModelError::TurnNotLocated { turn: 0 }), "{error}");
    assert!(error.to_string().contains("leave its role out of train_on"), "{error}");
}
