//! The decision page: everything an approver needs on one page, without scripts and without requests.

use std::fmt::Write;

use tunesmith_contract::{
    evaluation::{Evaluation, GateDecision, Interval, Perplexity, Sample},
    ids::{ProjectId, RunId},
    money::Usd,
};

/// What the page says.
#[derive(Debug, Clone, Copy)]
pub struct DecisionPage<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// What was fine-tuned.
    pub base_model: &'a str,
    /// The figures, with the samples.
    pub evaluation: &'a Evaluation,
    /// The gate's checks.
    pub gate: &'a GateDecision,
    /// Amounts, in the order shown: quoted, reserved, spent, standing cost of the endpoint, …
    pub costs: &'a [CostLine],
    /// Further facts about the training: steps, machine, time, dataset size, …
    pub training: &'a [Fact],
    /// The run that is live now, and stays so after a rejection or a failed deployment.
    pub live_run: Option<&'a RunId>,
    /// How to answer; `None` on the page that is kept as a record.
    pub answer: Option<&'a AnswerLinks>,
}

/// One amount of money.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostLine {
    /// What for.
    pub label: String,
    /// How much.
    pub amount: Usd,
}

/// One fact in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What.
    pub label: String,
    /// Its value, with its unit.
    pub value: String,
}

/// Where to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerLinks {
    /// Address that asks once more and approves; only `https:` and `http:` addresses become links.
    pub approve: String,
    /// Address that asks once more and rejects.
    pub reject: String,
    /// When silence becomes a rejection, in words.
    pub expires: String,
}

/// Samples shown; more do not help a decision.
const MAX_SAMPLES: usize = 12;

/// Characters shown of one answer.
const MAX_CHARS: usize = 1_200;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#d9dee5;--paper:#fff;--panel:#f5f7fa;--good:#1b7f4d;--bad:#b3261e;--base:#9aa8b8;--tuned:#2563a8;--live:#c77700}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa5b4;--line:#333c48;--paper:#14181e;--panel:#1d232b;--good:#5fc990;--bad:#ff8a80;--base:#6b7787;--tuned:#6fa8e8;--live:#f0a848}}\
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:64rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}.soft{color:var(--soft)}\
.verdict{border:1px solid var(--line);border-left:.4rem solid var(--good);border-radius:.5rem;background:var(--panel);padding:.9rem 1.1rem;margin:1.2rem 0;font-size:1.1rem}\
.verdict.no{border-left-color:var(--bad)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem}\
.card{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.8rem 1rem}.card b{display:block;font-size:1.5rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\
th{color:var(--soft);font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.scroll{overflow-x:auto}td code{overflow-wrap:normal}\
.ok{color:var(--good);font-weight:700;white-space:nowrap}.no{color:inherit}td.fail{color:var(--bad);font-weight:700;white-space:nowrap}\
.sample{border:1px solid var(--line);border-radius:.5rem;margin:.9rem 0;overflow:hidden}.sample h3{font-size:1rem;margin:0;padding:.6rem .9rem;background:var(--panel);border-bottom:1px solid var(--line)}\
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr))}.pair>div{padding:.6rem .9rem;white-space:pre-wrap;overflow-wrap:anywhere;border-right:1px solid var(--line)}\
.pair h4{font-size:.85rem;margin:0 0 .3rem;color:var(--soft)}.actions{display:flex;gap:.8rem;flex-wrap:wrap;margin:1rem 0}\
.actions a{padding:.6rem 1.4rem;border-radius:.5rem;text-decoration:none;font-weight:600;border:2px solid var(--good);color:var(--good)}.actions a.reject{border-color:var(--bad);color:var(--bad)}\
svg{width:100%;height:auto}svg text{fill:var(--ink);font-size:13px}svg .soft{fill:var(--soft)}svg .base{fill:var(--base)}svg .tuned{fill:var(--tuned)}svg .live{fill:var(--live)}svg line{stroke:var(--ink);stroke-width:1.5}";

/// Renders the page. Everything that is not a number is escaped.
#[must_use]
pub fn decision_page(page: &DecisionPage<'_>) -> String {
    let mut out = String::new();
    let project = escape(page.project.as_str());
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"referrer\" content=\"no-referrer\"><title>{project}: a new model waits for a decision</title><style>{STYLE}</style></head><body>\n\
         <h1>{project}: a new model waits for a decision</h1><p class=\"soft\">Run {} · fine-tuned from {} · dataset {}</p>\n",
        page.evaluation.run,
        escape(page.base_model),
        page.evaluation.dataset
    );
    verdict(&mut out, page);
    if let Some(answer) = page.answer {
        actions(&mut out, answer);
    }
    quality(&mut out, page.evaluation);
    checks(&mut out, page.gate);
    money(&mut out, page);
    samples(&mut out, &page.evaluation.samples);
    rollback(&mut out, page);
    out.push_str("</body></html>\n");
    out
}

fn verdict(out: &mut String, page: &DecisionPage<'_>) {
    let improvement = page.evaluation.improvement_percent;
    let found = format!("perplexity {} (95 % confidence {})", change(improvement.value), range(improvement, 1));
    let better = if improvement.low > 0.0 {
        format!("predicts unseen documents better than the base model: {found}")
    } else {
        format!("is not surely better than the base model: {found}")
    };
    let failed: Vec<&str> = page.gate.checks.iter().filter(|c| !c.passed).map(|c| c.name.as_str()).collect();
    let (class, gate) = if page.gate.passed {
        ("verdict", "Every check of the gate passed.".to_owned())
    } else {
        ("verdict no", format!("The gate refuses it: {}.", failed.join(", ")))
    };
    let _ = writeln!(out, "<div class=\"{class}\">The model {better}. {}</div>", escape(&gate));
}

fn actions(out: &mut String, answer: &AnswerLinks) {
    out.push_str("<div class=\"actions\">");
    for (class, label, address) in
        [("approve", "Approve and deploy", &answer.approve), ("reject", "Reject", &answer.reject)]
    {
        if address.starts_with("https://") || address.starts_with("http://") {
            let _ = write!(out, "<a class=\"{class}\" href=\"{}\">{label}</a>", escape(address));
        }
    }
    let _ = writeln!(out, "</div><p class=\"soft\">Without an answer it is rejected: {}.</p>", escape(&answer.expires));
}

fn quality(out: &mut String, evaluation: &Evaluation) {
    let (documents, spread) = match evaluation.documents {
        1 => ("1 document".to_owned(), "A single document says nothing of the spread: the ranges have no width."),
        count => (format!("{count} documents"), "The ranges are 95 % confidence intervals over documents."),
    };
    let _ = write!(
        out,
        "<h2>Quality on the untouched test split</h2>\n<p class=\"soft\">{documents}, {} examples, {} tokens that the model was never trained on. \
         Lower is better. {spread}</p>\n",
        evaluation.examples, evaluation.tokens
    );
    let mut models = vec![("Base model", "base", evaluation.base), ("New model", "tuned", evaluation.tuned)];
    models.extend(evaluation.live.map(|live| ("Live model", "live", live)));
    bars(out, &models);
    out.push_str("<div class=\"scroll\"><table><tr><th>Perplexity<th class=\"n\">per token<th class=\"n\">per word<th class=\"n\">per byte</tr>");
    for (label, _, perplexity) in &models {
        let _ = write!(out, "<tr><td>{label}");
        for interval in [perplexity.token, perplexity.word, perplexity.byte] {
            let _ = write!(
                out,
                "<td class=\"n\">{}<br><span class=\"soft\">{}</span>",
                figure(interval.value),
                range(interval, 2)
            );
        }
        out.push_str("</tr>");
    }
    out.push_str("</table></div>\n");
    if let Some(over_live) = evaluation.improvement_over_live_percent {
        let (change, range) = (change(over_live.value), range(over_live, 1));
        let _ = writeln!(out, "<p>Against the live model: perplexity {change} (95 % confidence {range}).</p>");
    }
}

/// One bar for each model, with its interval.
fn bars(out: &mut String, models: &[(&str, &str, Perplexity)]) {
    let most = models.iter().map(|(_, _, p)| p.token.high).fold(1.0, f64::max);
    let x = |value: f64| 110.0 + 480.0 * (value / most).clamp(0.0, 1.0);
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 680 {}\" role=\"img\" aria-label=\"Perplexity per token of each model\">",
        models.len() * 44 + 6
    );
    for (index, (label, class, perplexity)) in models.iter().enumerate() {
        let token = perplexity.token;
        let y = index * 44 + 6;
        let (left, right) = (x(token.low), x(token.high));
        let _ = write!(
            out,
            "<text x=\"0\" y=\"{}\">{label}</text><rect class=\"{class}\" x=\"110\" y=\"{y}\" width=\"{:.1}\" height=\"28\" rx=\"3\"/>\
             <line x1=\"{left:.1}\" y1=\"{mid}\" x2=\"{right:.1}\" y2=\"{mid}\"/><line x1=\"{left:.1}\" y1=\"{}\" x2=\"{left:.1}\" y2=\"{}\"/>\
             <line x1=\"{right:.1}\" y1=\"{}\" x2=\"{right:.1}\" y2=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            y + 19,
            x(token.value) - 110.0,
            y + 9,
            y + 19,
            y + 9,
            y + 19,
            right + 8.0,
            y + 19,
            figure(token.value),
            mid = y + 14,
        );
    }
    out.push_str("</svg>\n");
}

fn checks(out: &mut String, gate: &GateDecision) {
    out.push_str("<h2>The gate</h2>\n<div class=\"scroll\"><table><tr><th>Check<th>Result<th class=\"n\">Wanted<th class=\"n\">Found<th>In words</tr>");
    for check in &gate.checks {
        let (class, result) = if check.passed { ("ok", "passed") } else { ("fail", "failed") };
        let _ = write!(
            out,
            "<tr><td><code>{}</code><td class=\"{class}\">{result}<td class=\"n\">{}<td class=\"n\">{}<td>{}</tr>",
            escape(&check.name).replace('_', "_<wbr>"),
            figure(check.wanted),
            figure(check.found),
            escape(&check.message)
        );
    }
    out.push_str("</table></div>\n");
}

fn money(out: &mut String, page: &DecisionPage<'_>) {
    if !page.costs.is_empty() {
        out.push_str("<h2>Cost</h2>\n<div class=\"cards\">");
        for cost in page.costs {
            let _ = write!(out, "<div class=\"card\"><b>{}</b>{}</div>", cost.amount, escape(&cost.label));
        }
        out.push_str("</div>\n");
    }
    if !page.training.is_empty() {
        out.push_str("<h2>Training</h2>\n<div class=\"scroll\"><table>");
        for fact in page.training {
            let _ = write!(out, "<tr><th>{}<td>{}</tr>", escape(&fact.label), escape(&fact.value));
        }
        out.push_str("</table></div>\n");
    }
}

fn samples(out: &mut String, samples: &[Sample]) {
    if samples.is_empty() {
        return;
    }
    out.push_str("<h2>Answers side by side</h2>\n<p class=\"soft\">Without looking documents up. The same prompt, the same sampling.</p>\n");
    for sample in samples.iter().take(MAX_SAMPLES) {
        let _ = write!(out, "<div class=\"sample\"><h3>{}</h3><div class=\"pair\">", escape(&cut(&sample.prompt)));
        let answers = [
            ("Base model", Some(&sample.base)),
            ("New model", Some(&sample.tuned)),
            ("What the documents say", sample.reference.as_ref()),
        ];
        for (label, text) in answers {
            if let Some(text) = text {
                let _ = write!(out, "<div><h4>{label}</h4>{}</div>", escape(&cut(text)));
            }
        }
        out.push_str("</div></div>\n");
    }
}

fn rollback(out: &mut String, page: &DecisionPage<'_>) {
    out.push_str("<h2>If something goes wrong</h2>\n<ul>");
    match page.live_run {
        Some(run) => {
            let _ = write!(
                out,
                "<li>The new model gets an endpoint of its own. Until it has passed its smoke request and gives the same logits as in training, <code>{run}</code> keeps answering; \
                 if it does not pass, its endpoint is removed, <code>{run}</code> stays as it is, and you get a mail with the reason.</li><li>To go back later, start \
                 <code>approve-deployment</code> with <code>{{&quot;project&quot;: &quot;{project}&quot;, &quot;run&quot;: &quot;{run}&quot;, &quot;verdict&quot;: &quot;approve&quot;}}</code>: \
                 it is deployed again and checked, without training, and then takes the place of the new one.</li>",
                project = escape(page.project.as_str()),
            );
        }
        None => out.push_str(
            "<li>No model of this project is live. If the new one does not pass its smoke request, or its logits differ from those in training, \
             its endpoint is removed and you get a mail with the reason.</li>",
        ),
    }
    out.push_str("<li>A rejection deletes nothing: the run's adapter, metrics and this page stay in the workspace bucket.</li></ul>\n");
}

/// A number with as many digits as help.
fn figure(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() || v > 1e9 => format!("{value:.2e}"),
        v if v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// An improvement in words.
fn change(percent: f64) -> String {
    if percent >= 0.0 { format!("{percent:.1} % lower") } else { format!("{:.1} % higher", -percent) }
}

fn range(interval: Interval, digits: usize) -> String {
    if interval.high.abs() > 1e9 {
        return format!("{} to {}", figure(interval.low), figure(interval.high));
    }
    format!("{:.digits$} to {:.digits$}", interval.low, interval.high)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Text as HTML text or attribute value.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
