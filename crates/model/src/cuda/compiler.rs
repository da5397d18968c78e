//! The runtime compiler (NVRTC): the kernels' source as machine code for one card.
//!
//! Machine code (CUBIN), because a driver translates PTX only of a compiler that is no newer than itself, to the minor version, while
//! it runs the machine code of its whole major version (NVIDIA, "CUDA Compatibility", minor version compatibility).

use std::ffi::{CString, c_char};

use cudarc::nvrtc::result::{self, NvrtcError};
use cudarc::nvrtc::sys;

use super::backend::Stored;
use super::driver::failed;
use crate::error::{ModelError, Result, Version};

/// All kernels for one architecture.
#[derive(Debug)]
pub struct Compiled {
    /// What the driver loads.
    pub cubin: Vec<u8>,
    /// The same before the last translation, which tests read.
    #[cfg(test)]
    pub ptx: String,
}

/// The first version that can be asked which architectures it knows.
const OLDEST: Version = Version(11, 2);

/// Compiles for a card of this compute capability. Needs the compiler's library, but no card.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`] when the compiler is too old, or too new, for the card; [`ModelError::NoGpu`] when it is too old
/// for any, or the library beside it is missing; [`ModelError::Gpu`] with the compiler's own words.
pub fn compile(unit: &str, card: Version, stored: Stored, head: usize) -> Result<Compiled> {
    let compiler = version()?;
    if compiler < OLDEST {
        return Err(ModelError::NoGpu {
            reason: format!("libnvrtc is of CUDA {compiler}, {OLDEST} is the first that will do"),
        });
    }
    let Version(major, minor) = target(card, compiler, &architectures()?)?;
    let mut options = vec![format!("--gpu-architecture=sm_{major}{minor}"), format!("-DHEAD={head}")];
    options.extend((stored == Stored::Bf16).then(|| "-DSTORE_BF16".to_owned()));
    let text = CString::new(unit).map_err(|error| failed("nvrtcCreateProgram", error))?;
    let made = result::create_program(&text, Some(c"tunesmith.cu"));
    let program = Program(made.map_err(|error| failed("nvrtcCreateProgram", error))?);
    // SAFETY: the program lives, and so does its text.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) };
        return Err(refused(error, &log.map(|log| text_of(&log)).unwrap_or_default()));
    }
    let mut len = 0;
    // SAFETY: the program is compiled; a number to write to, and then as many bytes.
    let cubin = unsafe {
        let size = sys::nvrtcGetCUBINSize(program.0, &raw mut len).result();
        size.map_err(|error| failed("nvrtcGetCUBINSize", error))?;
        let mut cubin = vec![0u8; len];
        let copied = sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()).result();
        copied.map_err(|error| failed("nvrtcGetCUBIN", error))?;
        cubin
    };
    Ok(Compiled {
        cubin,
        #[cfg(test)]
        // SAFETY: the program is compiled.
        ptx: text_of(&unsafe { result::get_ptx(program.0) }.map_err(|error| failed("nvrtcGetPTX", error))?),
    })
}

/// The compiler's version.
///
/// # Errors
/// [`ModelError::Gpu`] when it does not say.
pub fn version() -> Result<Version> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two numbers to write to.
    let said = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result();
    said.map_err(|error| failed("nvrtcVersion", error))?;
    Ok(Version(major, minor))
}

/// Whether a driver for this version of CUDA runs what a compiler of that version makes: of the same major version, or an older one.
///
/// # Errors
/// [`ModelError::OldDriver`].
pub fn check_driver(driver: Version, compiler: Version) -> Result<()> {
    if driver.0 < compiler.0 {
        return Err(ModelError::OldDriver { driver, compiler });
    }
    Ok(())
}

/// Whether the runtime compiler can be opened.
#[cfg(test)]
pub fn has_compiler() -> bool {
    // SAFETY: opening the library runs nothing but its own start.
    unsafe { sys::is_culib_present() }
}

/// The architectures that the compiler knows.
fn architectures() -> Result<Vec<Version>> {
    let mut count = 0;
    // SAFETY: a number to write to.
    let said = unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result();
    said.map_err(|error| failed("nvrtcGetNumSupportedArchs", error))?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: room for as many numbers as the compiler has just named.
    let said = unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result();
    said.map_err(|error| failed("nvrtcGetSupportedArchs", error))?;
    Ok(known.into_iter().map(|number| Version(number / 10, number % 10)).collect())
}

/// The architecture to compile for: the card's own, else the first of its major version, whose machine code every later card of that
/// version runs. One between them may be that of a system on a chip (8.7, 10.1), whose code runs nowhere else.
fn target(card: Version, compiler: Version, known: &[Version]) -> Result<Version> {
    let found = [card, Version(card.0, 0)].into_iter().find(|architecture| known.contains(architecture));
    found.ok_or_else(|| {
        let none = Version(0, 0);
        let oldest = known.iter().copied().min().unwrap_or(none);
        ModelError::UnknownArchitecture { card, compiler, oldest, newest: known.iter().copied().max().unwrap_or(none) }
    })
}

fn refused(error: NvrtcError, log: &str) -> ModelError {
    match (error.0, log.lines().next()) {
        // the operations that it has built in are a library of their own, which the log names
        (sys::nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE, Some(line)) => {
            ModelError::NoGpu { reason: line.trim_end_matches('.').to_owned() }
        }
        (_, Some(_)) => failed("nvrtc", log),
        (_, None) => failed("nvrtc", error),
    }
}

/// A text that ends with zero.
fn text_of(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|char| *char as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made once, and here destroyed once. An error at the end helps nobody.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_CUDA_13: [Version; 5] = [Version(7, 5), Version(8, 0), Version(8, 7), Version(9, 0), Version(12, 0)];

    #[test]
    fn a_card_gets_code_of_its_own_major_version_or_both_versions_are_named() {
        let target = |card| target(card, Version(13, 0), &OF_CUDA_13);
        for (card, wanted) in [((8, 0), (8, 0)), ((8, 9), (8, 0)), ((9, 0), (9, 0)), ((12, 1), (12, 0))] {
            assert_eq!(target(Version(card.0, card.1)).unwrap(), Version(wanted.0, wanted.1));
        }
        for card in [Version(7, 0), Version(10, 0), Version(13, 0)] {
            let text = target(card).unwrap_err().to_string();
            for part in [format!("compute capability {card}"), "CUDA 13.0".to_owned(), "7.5 to 12.0".to_owned()] {
                assert!(text.contains(&part), "{text}");
            }
        }
    }

    #[test]
    fn a_driver_older_than_the_compiler_is_named_with_both_versions() {
        // a later minor version makes machine code that the driver runs
        for driver in [Version(13, 0), Version(13, 2), Version(14, 0)] {
            check_driver(driver, Version(13, 2)).unwrap();
        }
        let text = check_driver(Version(12, 8), Version(13, 2)).unwrap_err().to_string();
        for part in ["CUDA 12.8", "CUDA 13.2", "update the driver", "libnvrtc and libcublas of CUDA 12"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_missing_library_beside_the_compiler_is_named() {
        let log =
            "nvrtc: error: failed to open libnvrtc-builtins.so.13.0.\n  Make sure that it is installed correctly.";
        let text = refused(NvrtcError(sys::nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE), log).to_string();
        assert!(text.contains("libnvrtc-builtins.so.13.0;") && text.contains("libraries named"), "{text}");
    }
}
