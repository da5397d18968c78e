//! The folder that an export is handed out in: never mixed with other files, nor with what an earlier export left.

use std::path::Path;

use tunesmith_contract::job::{ExportFormat, ExportJob};
use tunesmith_model::{peft, weights};

use crate::{
    base::COMPANIONS,
    context::Context,
    error::{Result, TrainerError},
    export::{GGUF, MODELFILE},
    fidelity,
};

/// Whether an export of this form may have written a file of this name, whole or, killed in the middle, in part.
fn is_part(format: ExportFormat, name: &str) -> bool {
    let name = name.strip_suffix(".part").unwrap_or(name);
    match format {
        ExportFormat::PeftAdapter => {
            [peft::CONFIG_FILE, peft::WEIGHTS_FILE, peft::QUANTIZATION_FILE, peft::FINGERPRINT_FILE].contains(&name)
        }
        ExportFormat::MergedSafetensors => {
            is_shard(name) || [weights::SINGLE, weights::INDEX].contains(&name) || COMPANIONS.contains(&name)
        }
        ExportFormat::GgufF16 | ExportFormat::GgufQ8_0 | ExportFormat::GgufQ4K => [GGUF, MODELFILE].contains(&name),
    }
}

/// `model-00001-of-00004.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(a, b)| is_number(a) && is_number(b))
}

/// A folder with other files is refused before any work: whoever loads it might take them for part of the export. So are the folders
/// that the export is made from.
///
/// # Errors
/// [`TrainerError::Usage`] with the file or the folder, and what to name instead.
pub async fn refuse_foreign(job: &ExportJob, context: &Context) -> Result<()> {
    if job.base.folder.iter().chain([&job.adapter]).any(|source| *source == job.output) {
        return Err(TrainerError::Usage(format!(
            "the output {} is the folder of the base model or of the adapter; name another one",
            job.output
        )));
    }
    let there = context.store.list(&job.output).await?;
    match there.iter().find(|entry| !is_part(job.format, &entry.name)) {
        Some(entry) => Err(TrainerError::Usage(format!(
            "the output {} holds {}, which is no part of a {}; name a folder that is empty or holds an earlier export of this form",
            job.output,
            entry.name,
            fidelity::name(job.format)
        ))),
        None => Ok(()),
    }
}

/// Removes what an earlier export of this form left that this one has not written: shards, a `Modelfile`, what is known of the base.
///
/// # Errors
/// When the folder cannot be read or written.
pub async fn remove_left_over(written: &Path, job: &ExportJob, context: &Context) -> Result<()> {
    for entry in context.store.list(&job.output).await? {
        if is_part(job.format, &entry.name) && !written.join(&entry.name).exists() {
            context.store.delete(&job.output.join(&entry.name)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tunesmith_contract::job::{BaseSource, Location};

    use super::*;
    use crate::stop::Stop;

    #[test]
    fn only_names_that_an_export_gives_are_its_own() {
        let merged = |name| is_part(ExportFormat::MergedSafetensors, name);
        assert!(
            merged("model-00001-of-00002.safetensors") && merged("model.safetensors.part") && merged("config.json")
        );
        for foreign in
            ["model-old/weights.safetensors", "model-best.safetensors", "model-1-of-2.safetensors", "a/config.json"]
        {
            assert!(!merged(foreign), "{foreign}");
        }
    }

    #[tokio::test]
    async fn an_output_with_other_files_is_refused_and_what_an_earlier_export_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (written, output) = (folder.path().join("written"), folder.path().join("output"));
        for (place, names) in [
            (&written, &["adapter_config.json", "adapter_model.safetensors"][..]),
            // the last as an upload that was killed leaves it
            (&output, &["adapter_config.json", "base_quantization.json", "adapter_model.safetensors.part"][..]),
        ] {
            std::fs::create_dir(place).unwrap();
            names.iter().for_each(|name| std::fs::write(place.join(name), name).unwrap());
        }
        let job = |format| ExportJob {
            base: BaseSource { name: "tunesmith-mini".parse().unwrap(), folder: None },
            adapter: Location::Local(folder.path().join("adapter")),
            format,
            output: Location::Local(output.clone()),
            dataset: None,
            sequence_length: None,
        };
        let context = Context::new(Stop::default(), None).unwrap();
        for format in [ExportFormat::MergedSafetensors, ExportFormat::GgufF16] {
            let error = refuse_foreign(&job(format), &context).await.unwrap_err().to_string();
            assert!(error.contains("adapter_config.json") && error.contains("empty"), "{error}");
        }
        let same = ExportJob { output: Location::Local(folder.path().join("adapter")), ..job(ExportFormat::GgufF16) };
        assert!(refuse_foreign(&same, &context).await.unwrap_err().to_string().contains("another one"));
        let job = job(ExportFormat::PeftAdapter);
        refuse_foreign(&job, &context).await.unwrap();
        context.store.upload_folder(&written, &job.output).await.unwrap();
        remove_left_over(&written, &job, &context).await.unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&output).unwrap().map(|file| file.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    }
}
