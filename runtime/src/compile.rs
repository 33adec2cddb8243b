//! Compiles many kernels in parallel, through the cache.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cache::{Cache, Key, Lookup};
use crate::error::{Error, Result};
use crate::nvrtc::{Compiled, Nvrtc};

/// NVRTC's front end recurses: more than the usual 2 MiB of stack.
const STACK_BYTES: usize = 16 << 20;

/// One kernel to compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The kernel's name, for the log, errors and progress.
    pub name: String,
    /// CUDA C.
    pub source: String,
    /// NVRTC options beyond [`Nvrtc::effective_options`]'s own.
    pub options: Vec<String>,
}

impl Job {
    /// A job without further options.
    pub fn new(name: impl Into<String>, source: impl Into<String>) -> Job {
        Job { name: name.into(), source: source.into(), options: Vec::new() }
    }
}

/// Where compiled code came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The cache.
    Cached,
    /// NVRTC.
    Compiled,
    /// NVRTC, since the cache's file was damaged, in the way the text says.
    Rebuilt(String),
}

/// One compiled kernel.
#[derive(Debug, Clone)]
pub struct Built {
    /// The job's name.
    pub name: String,
    /// The code, its log and figures.
    pub compiled: Compiled,
    /// Where it came from.
    pub origin: Origin,
    /// How long it took, cache included.
    pub time: Duration,
    /// Why it could not be stored in the cache, when it could not: the code itself is good.
    pub cache_error: Option<Error>,
}

/// What a progress callback is told after each kernel.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Kernels done, this one included.
    pub done: usize,
    /// Kernels in all.
    pub total: usize,
    /// This kernel's name.
    pub name: &'a str,
    /// Where it came from; `None` when it failed.
    pub origin: Option<&'a Origin>,
}

/// How to compile.
#[derive(Debug, Clone, Copy)]
pub struct Compiler<'a> {
    /// The compiler.
    pub nvrtc: &'a Nvrtc,
    /// The cache, if one is to be used.
    pub cache: Option<&'a Cache>,
    /// Threads; `None` for one a core.
    pub threads: Option<NonZeroUsize>,
}

impl Compiler<'_> {
    /// Compiles one kernel, or takes it from the cache.
    ///
    /// # Errors
    /// Those of [`Nvrtc::compile`].
    pub fn compile(&self, job: &Job, arch: &str) -> Result<Built> {
        let start = Instant::now();
        let key = Key::new(&job.source, &job.name, arch, &job.options, self.nvrtc.version());
        let mut origin = Origin::Compiled;
        match self.cache.map(|cache| cache.get(&key)) {
            Some(Lookup::Hit(compiled)) => {
                let (name, time) = (job.name.clone(), start.elapsed());
                return Ok(Built { name, compiled, origin: Origin::Cached, time, cache_error: None });
            }
            Some(Lookup::Corrupt(why)) => origin = Origin::Rebuilt(why),
            Some(Lookup::Miss) | None => {}
        }
        let compiled = self.nvrtc.compile(&job.source, &job.name, arch, &job.options)?;
        let cache_error = self.cache.and_then(|cache| cache.put(&key, &compiled).err());
        Ok(Built { name: job.name.clone(), compiled, origin, time: start.elapsed(), cache_error })
    }

    /// Compiles kernels in parallel, the longest first; the result is in the jobs' order. `progress` is called after each, from any
    /// thread, one call at a time.
    ///
    /// # Errors
    /// The error of the first job that failed, in the jobs' order among those that ran: no new job starts after a
    /// failure.
    pub fn compile_all(
        &self,
        jobs: &[Job],
        arch: &str,
        progress: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Vec<Built>> {
        self.compile_until(jobs, arch, &AtomicBool::new(false), progress)
    }

    /// As [`Compiler::compile_all`], but no new job starts once `stop` is set: a failure sets it, and so may others.
    /// Without an error the result may then lack jobs.
    ///
    /// # Errors
    /// As [`Compiler::compile_all`].
    pub fn compile_until(
        &self,
        jobs: &[Job],
        arch: &str,
        stop: &AtomicBool,
        progress: &(dyn Fn(Progress<'_>) + Sync),
    ) -> Result<Vec<Built>> {
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let threads = self.threads.unwrap_or_else(cores).get().min(jobs.len());
        let (next, done) = (AtomicUsize::new(0), Mutex::new(0));
        // Long sources take long; begun last, one of them would keep the others waiting.
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(jobs[i].source.len()));
        let results: Vec<Mutex<Option<Result<Built>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                let job = &jobs[index];
                let result = self.compile(job, arch);
                if result.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                {
                    let mut done = lock(&done);
                    *done += 1;
                    let origin = result.as_ref().ok().map(|built| &built.origin);
                    progress(Progress { done: *done, total: jobs.len(), name: &job.name, origin });
                }
                *lock(&results[index]) = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                let thread = std::thread::Builder::new().name("weft-nvrtc".into()).stack_size(STACK_BYTES);
                // Without a thread, do the work here: it is slower, not wrong.
                if thread.spawn_scoped(scope, work).is_err() {
                    work();
                }
            }
        });
        let mut built = Vec::with_capacity(jobs.len());
        // Some never ran where a failure stopped them.
        for result in
            results.into_iter().filter_map(|cell| cell.into_inner().unwrap_or_else(PoisonError::into_inner))
        {
            built.push(result?);
        }
        Ok(built)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
