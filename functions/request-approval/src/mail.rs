//! The e-mail that asks for a decision. No I/O.

use std::fmt::Write as _;

use tunesmith_budget::EndpointPrice;
use tunesmith_contract::{ProjectId, RunId, Usd, evaluation::Evaluation};

/// What the mail says.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// The project.
    pub project: &'a ProjectId,
    /// The run.
    pub run: &'a RunId,
    /// The measured quality.
    pub evaluation: &'a Evaluation,
    /// What training cost.
    pub cost: Usd,
    /// What the endpoint will cost.
    pub price: &'a EndpointPrice,
    /// The run that is live now.
    pub live_run: Option<&'a RunId>,
    /// Base address of the decision page.
    pub answer_url: &'a str,
    /// ARN of the state machine that answers.
    pub approve_deployment_arn: &'a str,
    /// The one-time secret of the link.
    pub secret: &'a str,
}

impl Question<'_> {
    /// The address of the decision page. Opening it decides nothing: mail scanners open every link.
    #[must_use]
    pub fn link(&self) -> String {
        let base = self.answer_url.trim_end_matches('/');
        format!("{base}/?project={}&run={}&secret={}", self.project, self.run, self.secret)
    }

    /// Page of the state machine that answers, in the console of its region.
    fn console(&self) -> String {
        let arn = self.approve_deployment_arn;
        let region = arn.split(':').nth(3).unwrap_or_default();
        format!("https://{region}.console.aws.amazon.com/states/home?region={region}#/statemachines/view/{arn}")
    }

    /// Subject, at most 100 ASCII characters as SNS wants it.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("Tunesmith: {} - a model waits for your approval", self.project)
    }

    fn endpoint_cost(&self) -> String {
        match self.price {
            EndpointPrice::Serverless { answering_hour } => {
                format!("nothing is billed while nobody asks; an hour of answering costs {answering_hour}")
            }
            EndpointPrice::Instances { instance_type, count, hour } => format!(
                "{} an hour, {} a month (730 hours) for {count} {instance_type}, asked or not, until it is deleted",
                crate::per_hour(*count, *hour),
                self.price.idle_month()
            ),
        }
    }

    /// Input of `approve-deployment`.
    fn approval(&self, run: &RunId) -> String {
        serde_json::json!({"project": self.project, "run": run, "verdict": "approve"}).to_string()
    }

    /// The text.
    #[must_use]
    pub fn body(&self) -> String {
        let (base, tuned) = (&self.evaluation.base.token, &self.evaluation.tuned.token);
        let gain = &self.evaluation.improvement_percent;
        // the interval is one over documents: a single one has no spread
        let (documents, sure) = match self.evaluation.documents {
            1 => ("1 document".to_owned(), "how sure, a single test document cannot say".to_owned()),
            count => (
                format!("{count} documents"),
                format!("95 % sure: {low:.1} to {high:.1} %", low = gain.low, high = gain.high),
            ),
        };
        let mut text = format!(
            "A model for {project} has been trained and passed its gate. It goes live only if you approve.\n\n\
             Test perplexity per token   {tuned:.2} (base model {base:.2}; lower is better)\n\
             Better than the base by     {gain:.1} % ({sure})\n\
             Measured on                 {tokens} tokens of {documents} that were not trained on\n\
             Training cost               {cost}\n\
             Cost of the endpoint        {endpoint}\n",
            project = self.project,
            tuned = tuned.value,
            base = base.value,
            gain = gain.value,
            tokens = self.evaluation.tokens,
            cost = self.cost,
            endpoint = self.endpoint_cost(),
        );
        if let Some(live) = &self.evaluation.live {
            let _ = writeln!(text, "The live model's perplexity {:.2}", live.token.value);
        }
        let rollback = self.live_run.map_or_else(
            || "Nothing is live yet. If the new endpoint fails its check, it is deleted again.".to_owned(),
            |run| {
                format!(
                    "{run} stays live, on an endpoint of its own, until the new one has passed its check. If that fails, the \
                     new one\nis deleted and {run} stays. To go back later, start approve-deployment with\n   {}",
                    self.approval(run)
                )
            },
        );
        let _ = write!(
            text,
            "\nIf it goes wrong: {rollback}\n\n\
             Three ways to answer, within 7 days (silence means no):\n\n\
             1. Open this page, look at the samples and press a button:\n   {link}\n\n\
             2. In the Step Functions console open {name}\n   {console}\n   \
             and start it with this input (or with \"verdict\":\"reject\"):\n   {approve}\n\n\
             3. On the command line:\n   aws stepfunctions start-execution --state-machine-arn {arn} \\\n     \
             --input '{approve}'\n",
            link = self.link(),
            name = self.approve_deployment_arn.rsplit(':').next().unwrap_or_default(),
            console = self.console(),
            arn = self.approve_deployment_arn,
            approve = self.approval(self.run),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::evaluation::{Interval, Perplexity};

    use super::*;

    fn evaluation() -> Evaluation {
        let interval = |value| Interval { value, low: value - 1.0, high: value + 1.0 };
        let perplexity =
            |value| Perplexity { token: interval(value), word: interval(value * 2.0), byte: interval(2.0) };
        Evaluation {
            run: "run-0123456789ab".parse().unwrap(),
            dataset: "ds-0123456789abcdef".parse().unwrap(),
            documents: 3,
            examples: 30,
            tokens: 4000,
            words: 3000,
            bytes: 20_000,
            base: perplexity(30.0),
            tuned: perplexity(20.0),
            live: None,
            improvement_percent: interval(33.3),
            improvement_over_live_percent: None,
            samples: Vec::new(),
        }
    }

    #[test]
    fn the_mail_holds_the_numbers_the_rollback_plan_and_three_ways_to_answer() {
        let (project, run) = ("handbook".parse().unwrap(), "run-0123456789ab".parse().unwrap());
        let evaluation = evaluation();
        let price = EndpointPrice::Serverless { answering_hour: Usd::from_micros(288_000) };
        let question = Question {
            project: &project,
            run: &run,
            evaluation: &evaluation,
            cost: Usd::from_micros(1_250_000),
            price: &price,
            live_run: None,
            answer_url: "https://x.lambda-url.us-east-1.on.aws/",
            approve_deployment_arn: "arn:aws:states:us-east-1:123456789012:stateMachine:tunesmith-approve-deployment",
            secret: "abc",
        };
        let body = question.body();
        for part in [
            "20.00 (base model 30.00",
            "33.3 %",
            "$1.25",
            "it is deleted again",
            "https://x.lambda-url.us-east-1.on.aws/?project=handbook&run=run-0123456789ab&secret=abc",
            r#"{"project":"handbook","run":"run-0123456789ab","verdict":"approve"}"#,
            "open tunesmith-approve-deployment\n",
            "https://us-east-1.console.aws.amazon.com/states/home?region=us-east-1#/statemachines/view/arn:aws:states:us-east-1:123456789012:stateMachine:tunesmith-approve-deployment\n",
            "--state-machine-arn arn:aws:states:us-east-1:123456789012:stateMachine:tunesmith-approve-deployment \\\n",
            "silence means no",
            "nothing is billed while nobody asks; an hour of answering costs $0.288",
        ] {
            assert!(body.contains(part), "{part}\n---\n{body}");
        }
        assert!(!body.contains('<'), "a shell reads < as a redirection: {body}");
        assert!(question.subject().len() <= 100 && question.subject().is_ascii());

        let live = "run-ba9876543210".parse().unwrap();
        let body = Question { live_run: Some(&live), ..question.clone() }.body();
        for part in [
            "run-ba9876543210 stays live, on an endpoint of its own, until the new one has passed its check",
            r#"{"project":"handbook","run":"run-ba9876543210","verdict":"approve"}"#,
        ] {
            assert!(body.contains(part), "{part}\n---\n{body}");
        }

        let hour = Usd::from_micros(1_408_000);
        let price = EndpointPrice::Instances { instance_type: "ml.g5.xlarge".into(), count: 1, hour };
        let body = Question { price: &price, ..question }.body();
        assert!(
            body.contains("$1.408 an hour, $1027.84 a month (730 hours) for 1 ml.g5.xlarge, asked or not"),
            "{body}"
        );
    }
}
