//! Ollama's `Modelfile` for a GGUF file: where it is, how a conversation is written, where an answer stops.
//!
//! Ollama writes conversations with Go templates. It guesses one from a known chat template, and where it knows none it writes the
//! bare question: a tuned model then answers gibberish. So the model's own Jinja template is translated by what it does: it is
//! rendered for a few conversations, what stands around each turn is read off, and the result is compared on longer ones. A template
//! that does more than put text around turns cannot be translated and is refused.
//!
//! Source: Ollama's `docs/modelfile.md` and `docs/template.md`. The token that starts a text is left out of the template where the
//! file says that it is added (`tokenizer.ggml.add_bos_token`): Ollama adds it then.

use super::refuse;
use crate::chat::{ChatTemplate, GenerationPrompt, Message};
use crate::error::{ModelError, Result};
use crate::tokenizer::Tokenizer;

/// What a template writes before and after a turn.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Around {
    before: String,
    after: String,
}

/// A chat template that puts text around turns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Before a conversation that begins without a system turn, and before one that begins with it.
    heads: [String; 2],
    /// `None`: the template refuses a system turn or leaves it out.
    system: Option<Around>,
    user: Around,
    assistant: Around,
    /// Where an answer is to be generated.
    prompt: String,
}

const CONTENTS: [&str; 4] = ["QSYSQ", "QFIRSTQ", "QANSWERQ", "QSECONDQ"];

impl Turns {
    /// Reads off what `template` does; `None` when it does more than this can say.
    #[must_use]
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        let [system, user] = [Message::new("system", CONTENTS[0]), Message::new("user", CONTENTS[1])];
        let [assistant, second] = [Message::new("assistant", CONTENTS[2]), Message::new("user", CONTENTS[3])];
        let render = |messages: &[&Message], prompt| {
            let messages: Vec<Message> = messages.iter().map(|message| (*message).clone()).collect();
            template.render(&messages, prompt).ok()
        };
        let leave = |messages: &[&Message]| render(messages, GenerationPrompt::Leave);
        let (one, two, three) = (leave(&[&user])?, leave(&[&user, &assistant])?, leave(&[&user, &assistant, &second])?);
        let prompt = render(&[&user], GenerationPrompt::Add)?.strip_prefix(&one)?.to_owned();
        let (start, after_user) = one.split_once(CONTENTS[1])?;
        let assistant = around(two.strip_prefix(&one)?, CONTENTS[2])?;
        let user_turn = around(three.strip_prefix(&two)?, CONTENTS[3])?;
        let head = start.strip_suffix(&user_turn.before)?.to_owned();
        let mut turns = Self {
            heads: [head.clone(), head.clone()],
            system: None,
            user: Around { before: user_turn.before, after: after_user.to_owned() },
            assistant,
            prompt,
        };
        // a template without a system turn refuses it, or leaves it out
        if let Some(with_system) = leave(&[&system, &user]).filter(|text| text.contains(CONTENTS[0])) {
            let (start, rest) = with_system.split_once(CONTENTS[0])?;
            let after = rest.strip_suffix(&format!("{}{}{}", turns.user.before, CONTENTS[1], turns.user.after))?;
            let (head, before) = match start.strip_prefix(&head) {
                Some(before) => (head, before),
                None => (String::new(), start),
            };
            turns.heads[1] = head;
            turns.system = Some(Around { before: before.to_owned(), after: after.to_owned() });
        }
        turns.agrees(template).then_some(turns)
    }

    fn agrees(&self, template: &ChatTemplate) -> bool {
        let conversations: [&[&str]; 5] = [
            &["user"],
            &["user", "assistant", "user", "assistant", "user"],
            &["system", "user"],
            &["system", "user", "assistant", "user"],
            &["system", "user", "assistant"],
        ];
        conversations.into_iter().all(|roles| {
            let content =
                |(index, role): (usize, &&str)| Message::new(role, &format!("Line {index}\n\n  of <{role}>!"));
            let messages: Vec<Message> = roles.iter().enumerate().map(content).collect();
            if roles[0] == "system" && self.system.is_none() {
                return true;
            }
            [GenerationPrompt::Add, GenerationPrompt::Leave].into_iter().all(|prompt| {
                template.render(&messages, prompt).is_ok_and(|text| text == self.render(&messages, prompt))
            })
        })
    }

    /// A conversation, as the `Modelfile` has Ollama write it; white space around contents stays.
    #[must_use]
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> String {
        let with_system = messages.iter().any(|message| message.role == "system");
        let mut text = self.heads[usize::from(with_system)].clone();
        for Message { role, content } in messages {
            let around_opt = match role.as_str() {
                "system" => self.system.as_ref(),
                "user" => Some(&self.user),
                "assistant" => Some(&self.assistant),
                // the Go template has no place for others
                _ => None,
            };
            if let Some(Around { before, after }) = around_opt {
                text.extend([before, content, after].map(String::as_str));
            }
        }
        if prompt == GenerationPrompt::Add {
            text.push_str(&self.prompt);
        }
        text
    }

    /// The same as a Go template, without `bos` at its start.
    fn go(&self, bos: &str) -> String {
        let [plain, with_system] =
            [0, 1].map(|index| self.heads[index].strip_prefix(bos).unwrap_or(&self.heads[index]));
        let head = match plain == with_system {
            true => plain.to_owned(),
            false => format!("{{{{ if .System }}}}{with_system}{{{{ else }}}}{plain}{{{{ end }}}}"),
        };
        let turn = |Around { before, after }: &Around| format!("{before}{{{{ .Content }}}}{after}");
        let system = self.system.as_ref().map(turn).unwrap_or_default();
        format!(
            "{head}{{{{ range .Messages }}}}{{{{ if eq .Role \"system\" }}}}{system}{{{{ else if eq .Role \"user\" }}}}{}\
             {{{{ else if eq .Role \"assistant\" }}}}{}{{{{ end }}}}{{{{ end }}}}{}",
            turn(&self.user),
            turn(&self.assistant),
            self.prompt
        )
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        let turns = self.system.iter().chain([&self.user, &self.assistant]);
        let around = turns.flat_map(|turn| [&turn.before, &turn.after]);
        self.heads.iter().chain(around).chain([&self.prompt])
    }
}

fn around(text: &str, content: &str) -> Option<Around> {
    let (before, after) = text.split_once(content)?;
    Some(Around { before: before.to_owned(), after: after.to_owned() })
}

/// A `Modelfile`, and what its template does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    text: String,
    turns_opt: Option<Turns>,
}

impl Modelfile {
    /// For `gguf`, a file name in the same folder, with `num_ctx` positions: Ollama reserves the cache of all of them when it loads
    /// the model, so a model's own limit is mostly too many. A model without a chat template gets the prompt as it is.
    ///
    /// # Errors
    /// [`ModelError::NotInGguf`] for a template that cannot be translated.
    pub fn new(gguf: &str, tokenizer: &Tokenizer, num_ctx: usize) -> Result<Self> {
        let (template, turns_opt) = match tokenizer.chat_template() {
            Ok(template) => {
                let remedy =
                    "Ollama cannot write it: use llama.cpp, which runs the chat template in the GGUF file itself";
                let turns = Turns::of(template).filter(|turns| turns.texts().all(|text| can_be_quoted(text)));
                let Some(turns) = turns else { return refuse("chat_template", "not text around each turn", remedy) };
                let added = tokenizer.added_around()?.bos;
                let bos = tokenizer.bos().filter(|_| added).and_then(|id| tokenizer.token(id)).unwrap_or_default();
                (turns.go(&bos), Some(turns))
            }
            Err(ModelError::NoChatTemplate) => ("{{ .Prompt }}".to_owned(), None),
            Err(error) => return Err(error),
        };
        let mut text = format!("FROM ./{gguf}\nTEMPLATE \"\"\"{template}\"\"\"\n");
        for token in tokenizer.terminators().iter().filter_map(|id| tokenizer.token(*id)) {
            text.push_str(&format!("PARAMETER stop {token:?}\n"));
        }
        text.push_str(&format!("PARAMETER num_ctx {num_ctx}\n"));
        Ok(Self { text, turns_opt })
    }

    /// What stands in the file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A conversation as its template has Ollama write it; `None` where it has none.
    #[must_use]
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Option<String> {
        Some(self.turns_opt.as_ref()?.render(messages, prompt))
    }
}

/// Whether it may stand in a Go template within three quotation marks.
fn can_be_quoted(text: &str) -> bool {
    !text.contains("{{") && !text.contains("}}") && !text.contains("\"\"\"") && !text.ends_with('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<s>system\nBe good.</s>\n{% endif %}\
        <s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}";

    #[test]
    fn a_template_is_translated_by_what_it_does() {
        let turns = Turns::of(&ChatTemplate::new(CHATML, "", "").unwrap()).unwrap();
        assert_eq!(
            turns.go(""),
            "{{ if .System }}{{ else }}<s>system\nBe good.</s>\n{{ end }}{{ range .Messages }}{{ if eq .Role \"system\" }}<s>system\n\
             {{ .Content }}</s>\n{{ else if eq .Role \"user\" }}<s>user\n{{ .Content }}</s>\n{{ else if eq .Role \"assistant\" }}\
             <s>assistant\n{{ .Content }}</s>\n{{ end }}{{ end }}<s>assistant\n"
        );
        let plain = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{{ eos_token }}{% endfor %}\
            {% if add_generation_prompt %}[assistant]{% endif %}";
        let turns = Turns::of(&ChatTemplate::new(plain, "<b>", "<e>").unwrap()).unwrap();
        assert!(
            turns.go("<b>").starts_with("{{ range .Messages }}{{ if eq .Role \"system\" }}[system]{{ .Content }}<e>")
        );
    }

    #[test]
    fn templates_that_do_more_are_refused() {
        // numbers turns; drops the thoughts of all answers but the last; leaves the system turn out: that one can be said
        let numbered = "{% for m in messages %}{{ loop.index }}{{ m['role'] }}:{{ m['content'] }};{% endfor %}";
        let drops = "{% for m in messages %}{% if loop.last or m['role'] != 'assistant' %}{{ m['role'] }}:{{ m['content'] }};\
            {% endif %}{% endfor %}";
        for source in [numbered, drops] {
            assert_eq!(Turns::of(&ChatTemplate::new(source, "", "").unwrap()), None, "{source}");
        }
        let silent = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }}:{{ m['content'] }};{% endif %}{% endfor %}";
        assert!(Turns::of(&ChatTemplate::new(silent, "", "").unwrap()).is_some());
        assert!(!can_be_quoted("a {{ b") && !can_be_quoted("say \"") && can_be_quoted("<|user|>\n"));
    }
}
