//! The bytes of a GGUF file, version 3: magic, counts, metadata, tensor infos, padding, tensors each padded to 32.
//!
//! candle's own writer wants every tensor in memory at once and knows version 2 only; this one is given a tensor at a time. A file
//! grows under a temporary name and gets its own when it is whole. One that was left unfinished is continued: its head says what
//! it was to become, down to the hash of its sources.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;

use super::{Metadata, encoding, refuse};
use crate::error::{ModelError, Result};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// `general.alignment` where no key says otherwise.
const ALIGNMENT: usize = 32;

/// A tensor in the head of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its shape, rows first.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub block: GgmlDType,
}

impl Info {
    fn size(&self) -> usize {
        encoding::size(self.block, self.shape.iter().product())
    }
}

/// A file whose head is known.
#[derive(Debug)]
pub struct Layout {
    head: Vec<u8>,
    /// Where each tensor begins and ends.
    spans: Vec<(usize, usize)>,
}

impl Layout {
    /// The head for these keys and tensors.
    pub fn new(metadata: &Metadata, tensors: &[Info]) -> Result<Self> {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            text(&mut head, key);
            head.extend(kind(value).to_le_bytes());
            put(&mut head, key, value)?;
        }
        let mut offset = 0;
        let mut spans = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            text(&mut head, &tensor.name);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            // columns first
            tensor.shape.iter().rev().for_each(|size| head.extend((*size as u64).to_le_bytes()));
            head.extend(encoding::id(tensor.block).to_le_bytes());
            head.extend((offset as u64).to_le_bytes());
            spans.push((offset, offset + tensor.size()));
            offset += tensor.size().next_multiple_of(ALIGNMENT);
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
        let start = head.len();
        spans.iter_mut().for_each(|(from, to)| (*from, *to) = (*from + start, *to + start));
        Ok(Self { head, spans })
    }

    /// Size of the whole file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.spans.last().map_or(self.head.len(), |(_, end)| end.next_multiple_of(ALIGNMENT))
    }

    /// Writes the file to `path`; `tensor` gives the bytes of the tensor with this index, `progress` hears how many bytes are there.
    pub fn write(
        &self,
        path: &Path,
        mut tensor: impl FnMut(usize) -> Result<Vec<u8>>,
        mut progress: impl FnMut(usize),
    ) -> Result<()> {
        let part = path.with_added_extension("part");
        let io = |error| ModelError::io(&part)(error);
        let (mut file, done) = self.open(&part)?;
        for (index, (from, to)) in self.spans.iter().enumerate().skip(done) {
            progress(*from);
            let mut bytes = tensor(index)?;
            if bytes.len() != to - from {
                let reason = format!("tensor {index} has {} bytes, its info says {}", bytes.len(), to - from);
                return Err(ModelError::BadGguf { path: part, reason });
            }
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            file.write_all(&bytes).map_err(io)?;
            file.sync_data().map_err(io)?;
        }
        file.sync_all().map_err(io)?;
        drop(file);
        progress(self.bytes());
        fs::rename(&part, path).map_err(ModelError::io(path))
    }

    /// The unfinished file, standing where the next tensor goes, and how many tensors it has. Of those that seem whole the last one
    /// is written again: a machine that died may have lost its end.
    fn open(&self, part: &Path) -> Result<(File, usize)> {
        let io = |error| ModelError::io(part)(error);
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part).map_err(io)?;
        let length = file.metadata().map_err(io)?.len() as usize;
        let mut head = vec![0; self.head.len().min(length)];
        file.read_exact(&mut head).map_err(io)?;
        let whole = self.spans.iter().take_while(|(_, end)| end.next_multiple_of(ALIGNMENT) <= length).count();
        let done = if head == self.head { whole.saturating_sub(1) } else { 0 };
        let at = self.spans.get(done).map_or(self.head.len(), |(from, _)| *from);
        if head != self.head {
            file.set_len(0).map_err(io)?;
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            file.write_all(&self.head).map_err(io)?;
        }
        file.set_len(at as u64).map_err(io)?;
        file.seek(SeekFrom::Start(at as u64)).map_err(io)?;
        Ok((file, done))
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// `enum gguf_type`.
fn kind(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<()> {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => text(out, v),
        Value::Array(items) => {
            let first = items.first().map_or(4, kind);
            if items.iter().any(|item| kind(item) != first) {
                return refuse(key, "a list of several types", "write one type");
            }
            out.extend(first.to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().try_for_each(|item| put(out, key, item))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::gguf_file::Content;

    use super::*;

    fn layout(hash: &str) -> Layout {
        let metadata: Metadata = vec![
            ("a".into(), Value::U32(7)),
            ("list".into(), Value::Array(vec![Value::String("x y".into()), Value::String("é".into())])),
            ("hash".into(), Value::String(hash.into())),
        ];
        let info =
            |name: &str, shape: &[usize]| Info { name: name.into(), shape: shape.to_vec(), block: GgmlDType::F32 };
        Layout::new(&metadata, &[info("first", &[2, 3]), info("second", &[5]), info("third", &[1, 2])]).unwrap()
    }

    fn values(index: usize) -> Vec<u8> {
        let count = [6, 5, 2][index];
        (0..count).flat_map(|value| (value as f32 + 10.0 * index as f32).to_le_bytes()).collect()
    }

    #[test]
    fn candle_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        let layout = layout("1");
        let mut seen = Vec::new();
        layout.write(&path, |index| Ok(values(index)), |bytes| seen.push(bytes)).unwrap();
        assert_eq!(seen.last(), Some(&layout.bytes()));
        assert_eq!(fs::metadata(&path).unwrap().len() as usize, layout.bytes());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
        let mut file = File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        assert_eq!(content.metadata["a"].to_u32().unwrap(), 7);
        assert_eq!(content.metadata["list"].to_vec().unwrap()[1].to_string().unwrap(), "é");
        let third = content.tensor(&mut file, "third", &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        assert_eq!(third.to_vec2::<f32>().unwrap(), [[20.0, 21.0]]);
        assert_eq!(content.tensor_infos["first"].shape.dims(), [2, 3]);
    }

    #[test]
    fn an_unfinished_file_is_continued_and_one_of_other_sources_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, wanted) = (folder.path().join("x.gguf"), folder.path().join("wanted.gguf"));
        layout("1").write(&wanted, |index| Ok(values(index)), |_| {}).unwrap();
        let broken = |layout: &Layout, at: usize| {
            let mut made = Vec::new();
            let tensor = |index| {
                made.push(index);
                if index == at { Err(ModelError::EmptyBatch) } else { Ok(values(index)) }
            };
            let result = layout.write(&path, tensor, |_| {});
            assert_eq!((result.is_ok(), path.exists()), (at > 2, at > 2), "nothing half-written has the name");
            made
        };
        assert_eq!(broken(&layout("1"), 2), [0, 1, 2]);
        assert_eq!(broken(&layout("2"), 2), [0, 1, 2], "another source");
        assert_eq!(broken(&layout("1"), 2), [0, 1, 2]);
        assert_eq!(broken(&layout("1"), 9), [1, 2], "the last whole tensor is written again");
        assert_eq!(fs::read(&path).unwrap(), fs::read(&wanted).unwrap());
        let short = layout("1").write(&path, |_| Ok(vec![1]), |_| {}).unwrap_err().to_string();
        assert!(short.contains("has 1 bytes, its info says 24"), "{short}");
    }
}
