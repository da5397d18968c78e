//! The kernels on the processor: the same source, compiled as C++ against `on_cpu/cuda_on_cpu.h`, with memory of the host.
//!
//! Needs a C++ compiler (`c++`, `g++` or `clang++`), and panics without one: nothing would be compared. The library is kept beside the
//! test's own program under a name that its source decides, so that only a changed kernel is compiled again.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use half::bf16;

use super::backend::{Argument, Backend, Launch, Operand, Product, Stored};
use super::source;
use crate::error::{ModelError, Result};

/// In which order the threads of a block run between two barriers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// First to last.
    Forward,
    /// Last to first: a kernel that lacks a barrier gives something else.
    Reversed,
}

type Run = unsafe extern "C" fn(*const c_char, *const u32, u32, usize, *mut *mut c_void, c_int) -> *const c_char;

/// A device that is the processor.
#[derive(Debug)]
pub struct Emulator {
    library: Arc<Library>,
    stored: Stored,
    head: usize,
    order: Order,
    most_shared: usize,
    memory: Mutex<HashMap<u64, Box<[u64]>>>,
}

#[derive(Debug)]
struct Library {
    run: Run,
    /// The emulation has one set of fibers.
    busy: Mutex<()>,
}

/// Written before and behind every piece of memory, and into it: a NaN in every form.
const UNWRITTEN: u64 = u64::MAX;
/// Words around a piece of memory that no kernel may touch.
const GUARD: usize = 8;
/// Bytes of shared memory that a block can have on a card of compute capability 9.0.
const MOST_SHARED: usize = 232_448;

impl Emulator {
    /// The emulation of [`source`]'s kernels. Panics when they do not compile, or there is no C++ compiler.
    pub fn open(stored: Stored, head: usize, order: Order) -> Self {
        Self::of_source(&source::translation_unit(), stored, head, order)
    }

    /// The same for other kernels, of a source that begins as ours does.
    pub fn of_source(unit: &str, stored: Stored, head: usize, order: Order) -> Self {
        static LIBRARIES: Mutex<Option<HashMap<PathBuf, Arc<Library>>>> = Mutex::new(None);
        let text = program(unit);
        let mut flags = vec![format!("-DHEAD={head}")];
        flags.extend((stored == Stored::Bf16).then(|| "-DSTORE_BF16".to_owned()));
        let path = path_for(&text, &flags);
        // held while compiling, so that tests which want the same library do not make it twice
        let mut libraries = LIBRARIES.lock().unwrap();
        let libraries = libraries.get_or_insert_default();
        if !libraries.contains_key(&path) {
            if !path.exists() {
                compile(&text, &flags, &path);
            }
            libraries.insert(path.clone(), Arc::new(load(&path)));
        }
        let library = Arc::clone(&libraries[&path]);
        Self { library, stored, head, order, most_shared: MOST_SHARED, memory: Mutex::default() }
    }

    /// The same with so many bytes of shared memory for a block.
    pub fn with_most_shared(self, most_shared: usize) -> Self {
        Self { most_shared, ..self }
    }

    fn value(&self, pointer: u64, stored: Stored, index: usize) -> f32 {
        // SAFETY: the address is one of ours, and products ask for elements of their matrices only.
        unsafe {
            match stored {
                Stored::F32 => *(pointer as *const f32).add(index),
                Stored::Bf16 => bf16::from_bits(*(pointer as *const u16).add(index)).to_f32(),
            }
        }
    }

    /// Cards do not see each other's memory.
    fn check_owned(&self, pointer: u64) {
        let memory = self.memory.lock().unwrap();
        let mut spans = memory.iter().map(|(start, words)| *start..=*start + 8 * (words.len() - 2 * GUARD) as u64);
        assert!(pointer == 0 || spans.any(|span| span.contains(&pointer)), "memory of another device");
    }

    fn check_guards(memory: &[u64]) {
        let (before, after) = (&memory[..GUARD], &memory[memory.len() - GUARD..]);
        assert!(before.iter().chain(after).all(|word| *word == UNWRITTEN), "a kernel wrote outside its memory");
    }
}

impl Backend for Emulator {
    fn stored(&self) -> Stored {
        self.stored
    }

    fn head(&self) -> usize {
        self.head
    }

    fn most_shared(&self) -> usize {
        self.most_shared
    }

    fn free_memory(&self) -> Result<usize> {
        Ok(1 << 30)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let memory = vec![UNWRITTEN; bytes.div_ceil(8) + 2 * GUARD].into_boxed_slice();
        let pointer = memory[GUARD..].as_ptr() as u64;
        self.memory.lock().unwrap().insert(pointer, memory);
        Ok(pointer)
    }

    fn free(&self, pointer: u64) {
        let memory = self.memory.lock().unwrap().remove(&pointer);
        if !std::thread::panicking() {
            Self::check_guards(&memory.expect("memory is freed once"));
        }
    }

    fn clear(&self, pointer: u64, bytes: usize) -> Result<()> {
        // SAFETY: callers clear memory that `allocate` gave.
        unsafe { (pointer as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    fn upload(&self, pointer: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: callers write to memory that `allocate` gave, and never more than they asked for.
        unsafe { (pointer as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, pointer: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: callers read what they asked `allocate` for.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(pointer as *const u8, bytes.len()) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let failed = |reason: String| ModelError::Gpu { call: launch.kernel, reason };
        if launch.shared > self.most_shared {
            return Err(failed(format!("{} bytes of shared memory, a block has {}", launch.shared, self.most_shared)));
        }
        for argument in launch.arguments {
            if let Argument::Pointer(pointer) = argument {
                self.check_owned(*pointer);
            }
        }
        let mut words: Vec<u64> = launch.arguments.iter().map(word).collect();
        let mut values: Vec<*mut c_void> = words.iter_mut().map(|word| (&raw mut *word).cast()).collect();
        let name = CString::new(launch.kernel).unwrap();
        let grid = launch.grid.map(|blocks| blocks as u32);
        let reversed = c_int::from(self.order == Order::Reversed);
        let _busy = self.library.busy.lock().unwrap();
        // SAFETY: the caller promises what the kernel needs; the name and the arguments live until the call returns.
        let failure = unsafe {
            let threads = launch.threads as u32;
            (self.library.run)(name.as_ptr(), grid.as_ptr(), threads, launch.shared, values.as_mut_ptr(), reversed)
        };
        if failure.is_null() {
            return Ok(());
        }
        // SAFETY: a text that the library holds for ever.
        Err(failed(unsafe { CStr::from_ptr(failure) }.to_string_lossy().into_owned()))
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        // by columns, as cuBLAS computes it: element (i, j) of a matrix lies at i + j · (leading dimension)
        let Product { m, n, k, scale, a, b, c, c_stride, c_stored, add } = product.by_columns();
        // what cuBLAS insists on
        let rows_in_memory = |operand: Operand, rows, columns| if operand.transposed { columns } else { rows };
        assert!(a.stride >= rows_in_memory(a, m, k) && b.stride >= rows_in_memory(b, k, n) && c_stride >= m);
        let read = |operand: Operand, row: usize, column: usize| {
            let (row, column) = if operand.transposed { (column, row) } else { (row, column) };
            self.value(operand.pointer, self.stored, row + column * operand.stride)
        };
        for j in 0..n {
            for i in 0..m {
                let sum: f32 = (0..k).map(|l| read(a, i, l) * read(b, l, j)).sum();
                let at = i + j * c_stride;
                let sum = scale * sum + if add { self.value(c, c_stored, at) } else { 0.0 };
                // SAFETY: the caller promises the memory of `c`.
                unsafe {
                    match c_stored {
                        Stored::F32 => *(c as *mut f32).add(at) = sum,
                        Stored::Bf16 => *(c as *mut u16).add(at) = bf16::from_f32(sum).to_bits(),
                    }
                }
            }
        }
        Ok(())
    }
}

/// An argument at the beginning of eight bytes.
fn word(argument: &Argument) -> u64 {
    let mut word = [0; 8];
    match *argument {
        Argument::Pointer(pointer) => word = pointer.to_ne_bytes(),
        Argument::Long(value) => word = value.to_ne_bytes(),
        Argument::Int(value) => word[..4].copy_from_slice(&value.to_ne_bytes()),
        Argument::Float(value) => word[..4].copy_from_slice(&value.to_ne_bytes()),
    }
    u64::from_ne_bytes(word)
}

/// Emulation, kernels, a table of them by name, and the function that starts one.
fn program(unit: &str) -> String {
    let unit = unit.replace("#include \"cuda_on_cpu.h\"", include_str!("on_cpu/cuda_on_cpu.h"));
    let known = |name: &str| format!("{{\"{name}\", (void *)&{name}, cuda_on_cpu::Body<decltype(&{name})>::run}},\n");
    let table: String = source::kernels_of(&unit).map(known).collect();
    let launch = include_str!("on_cpu/launch.cpp");
    format!("{unit}\nstatic const cuda_on_cpu::Known KNOWN[] = {{\n{table}}};\n{launch}")
}

fn path_for(text: &str, flags: &[String]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (text, flags).hash(&mut hasher);
    let folder = std::env::current_exe().unwrap().with_file_name("cuda-on-cpu");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{:016x}.so", hasher.finish()))
}

/// Panics when there is no compiler: a comparison that did not happen must not be taken for one that succeeded.
fn compile(text: &str, flags: &[String], path: &Path) {
    // another process may make the same file
    let unique = |extension: &str| path.with_extension(format!("{}.{extension}", std::process::id()));
    let (code, made) = (unique("cpp"), unique("so"));
    std::fs::write(&code, text).unwrap();
    for compiler in ["c++", "g++", "clang++"] {
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-DCUDA_ON_CPU"]);
        // longjmp from one stack to another is what the emulation is made of; sums are rounded one by one
        command.args(["-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fno-strict-aliasing"]);
        command.args(flags).arg(&code).arg("-o").arg(&made).stdin(Stdio::null());
        let Ok(done) = command.output() else { continue };
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{compiler} refuses the kernels:\n{}",
            said.chars().take(4000).collect::<String>()
        );
        std::fs::rename(&made, path).unwrap();
        std::fs::remove_file(&code).unwrap();
        return;
    }
    std::fs::remove_file(&code).unwrap();
    panic!(
        "no C++ compiler can be started (c++, g++, clang++), so the kernels would be compared with nothing; install one: \
         apt-get install g++, dnf install gcc-c++, or apk add g++"
    );
}

unsafe extern "C" {
    // of the C library, which the standard library is linked with
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// The library stays open until the process ends.
fn load(path: &Path) -> Library {
    const NOW: c_int = 2;
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a library that we have just made; the function has the type that its source gives it.
    unsafe {
        let library = dlopen(path.as_ptr(), NOW);
        assert!(!library.is_null(), "{path:?} cannot be opened");
        let run = dlsym(library, c"cuda_on_cpu_launch".as_ptr());
        assert!(!run.is_null(), "{path:?} is not the emulation");
        Library { run: std::mem::transmute::<*mut c_void, Run>(run), busy: Mutex::new(()) }
    }
}
