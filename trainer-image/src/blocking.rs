//! Computing beside the asynchronous tasks that heartbeat, poll and upload.

use crate::error::{Result, TrainerError};

/// Runs the computation on a thread of its own. A panic in it is an error here, so that the job can still report and clean up.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(TrainerError::panicked(error.into_panic().as_ref())),
        Err(error) => Err(TrainerError::Panicked { message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_with_its_message() {
        let error = blocking::<()>(|| panic!("row {} of the batch", 3)).await.unwrap_err();
        assert!(error.to_string().contains("row 3 of the batch"), "{error}");
    }
}
