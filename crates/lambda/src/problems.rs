//! What could not be done when many things were looked at. The rest was.

use std::fmt::Display;

use tunesmith_contract::error_name::Failure;

/// Failures of a look's parts: each is logged when it happens, all of them fail the look when everything is done that does not
/// wait for them.
#[derive(Debug, Default)]
pub struct Problems(Vec<(String, Failure)>);

impl Problems {
    /// The value, or nothing and a problem more. `what` names the lease, endpoint, run, project or question.
    pub fn keep<T>(&mut self, what: impl Display, done: Result<T, Failure>) -> Option<T> {
        done.map_err(|failure| {
            tracing::error!(%what, error = %failure.name, cause = %failure.message, "a part of the look failed");
            self.0.push((what.to_string(), failure));
        })
        .ok()
    }

    /// The end of the look.
    ///
    /// # Errors
    /// One failure with the name of the first problem and the words of all.
    pub fn none(self) -> Result<(), Failure> {
        let Some((_, first)) = self.0.first() else { return Ok(()) };
        let words: Vec<String> = self.0.iter().map(|(what, failure)| format!("{what}: {}", failure.message)).collect();
        Err(Failure::new(
            first.name,
            format!(
                "{} part(s) of this look failed, everything that does not wait for them was done, and later looks do what is \
                 left: {}",
                words.len(),
                words.join("; ")
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::ErrorName;

    use super::*;

    #[test]
    fn what_fails_is_told_in_the_end_and_stops_nothing() {
        let mut problems = Problems::default();
        assert_eq!(problems.keep("a", Ok(1)), Some(1));
        assert_eq!(problems.keep::<u8>("i-1", Err(Failure::new(ErrorName::ServiceUnavailable, "SNS is away"))), None);
        assert_eq!(problems.keep::<u8>("handbook", Err(Failure::new(ErrorName::AccessDenied, "no"))), None);
        assert_eq!(problems.keep("b", Ok(2)), Some(2));
        let failure = problems.none().unwrap_err();
        assert_eq!(failure.name, ErrorName::ServiceUnavailable);
        for part in ["2 part(s)", "everything that does not wait for them was done", "i-1: SNS is away", "handbook: no"]
        {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
        assert_eq!(Problems::default().none(), Ok(()));
    }
}
