"""The official `openai` client against the gateway. Arguments: base URL, API key, model. Prints what it did; fails loudly."""

import sys

import openai

base_url, key, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=2, timeout=60)

listed = {entry.id for entry in client.models.list()}
assert {model, f"{model}:base"} <= listed, listed

for name in (model, f"{model}:base"):
    found = client.models.retrieve(name)
    assert (found.id, found.object) == (name, "model"), found

question = [{"role": "user", "content": "How many days of paid leave do I get?"}]
whole = client.chat.completions.create(model=model, messages=question, max_tokens=16, temperature=0, seed=1)
assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant"
assert whole.choices[0].finish_reason in ("stop", "length")
assert 0 < whole.usage.completion_tokens <= 16 < whole.usage.prompt_tokens
sources = whole.model_extra["sources"]
assert sources and sources[0]["path"], sources

chunks = list(client.chat.completions.create(model=model, messages=question, max_tokens=16, temperature=0, seed=1, stream=True))
streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert streamed == whole.choices[0].message.content, (streamed, whole.choices[0].message.content)

text = client.completions.create(model=f"{model}:base", prompt="The ferry", max_tokens=8, temperature=0)
assert text.object == "text_completion" and text.choices[0].text

for model_name, api_key, error in [
    (model, "ts-wrong", openai.AuthenticationError),
    ("no-such-model", key, openai.NotFoundError),
]:
    try:
        client.with_options(api_key=api_key, max_retries=0).chat.completions.create(model=model_name, messages=question)
    except error as refused:
        assert refused.body["message"], refused.body
    else:
        raise AssertionError(f"{model_name} was accepted")
try:
    client.models.retrieve("no-such-model")
except openai.NotFoundError as refused:
    assert refused.body["code"] == "model_not_found", refused.body
else:
    raise AssertionError("an unknown model was found")
print(f"openai {openai.__version__}: {len(chunks)} chunks, {len(sources)} sources")
