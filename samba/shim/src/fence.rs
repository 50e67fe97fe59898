//! The fence: this process never outlives its node's lease.
//!
//! The sidecar writes into the shared page which instance may serve, and until when. Two POSIX timers per
//! process make that true, whatever the process or the sidecar is doing:
//!
//! - the *tick*, a signal at a short interval, whose handler looks into the page and ends the process if
//!   another instance is named there or the deadline has passed;
//! - the *deadline*, armed by each tick to the lease's end, at which the kernel itself sends SIGKILL. A
//!   process that was stopped, or hangs, or whose sidecar is gone, ends then without running another
//!   instruction of its own.
//!
//! Nothing is enforced before the page named this instance for the first time (*bound*): nothing durable can
//! have been granted by then, because every tree connect waits for the sidecar. From then on the fence only
//! gets harder: a bound process that loses sight of its page keeps the deadline that is armed.
//!
//! A process with id 1 of its PID namespace is out of reach of SIGKILL. It ends at its next tick instead; it
//! is `smbd`'s parent, which serves no client.
//!
//! # What must stay true
//!
//! All that the handler calls is async-signal-safe: atomic loads and plain system calls, no allocation, no
//! lock.

#![expect(unsafe_code, reason = "timers and signals are C interfaces")]

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::{mem, ptr};

use frame::PageReader;
use frame::page::now_ns;

use crate::syslog::Trouble;
use crate::{process, sidecar};

const NS_PER_SEC: u64 = 1_000_000_000;

/// The tick before there is a page that says how often.
const FENCE_TICK_DEFAULT_NS: u64 = 100_000_000;

/// What the page may say: a tick that is not a burden, and that is soon enough for any sensible lease.
const FENCE_TICK_NS: std::ops::RangeInclusive<u64> = 1_000_000..=NS_PER_SEC;

/// How many pages a process follows in its life. One is the rule; another comes only when the run directory
/// was emptied, or when the sidecar was replaced by one with another page layout.
const PAGES_MAX: usize = 8;

/// The pages followed so far; the last is in force. They stay mapped, because a tick may come between the
/// moment when somebody found out which is in force and the moment when he looks at it.
static PAGES: [OnceLock<PageReader>; PAGES_MAX] = [const { OnceLock::new() }; PAGES_MAX];
static PAGE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether the page in force has named this instance.
static BOUND: AtomicBool = AtomicBool::new(false);

/// Whether both timers exist in this process.
static ARMED: AtomicBool = AtomicBool::new(false);
static TICK_TIMER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static DEADLINE_TIMER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// What the deadline timer is set to; 0 when it is not.
static DEADLINE_NS: AtomicU64 = AtomicU64::new(0);

/// Creates the timers of this process and ticks once.
pub(crate) fn begin() {
    ARMED.store(false, Ordering::Relaxed);
    DEADLINE_NS.store(0, Ordering::Relaxed);
    match create_timers() {
        Some((tick_timer, deadline_timer)) => {
            TICK_TIMER.store(tick_timer, Ordering::Relaxed);
            DEADLINE_TIMER.store(deadline_timer, Ordering::Relaxed);
            ARMED.store(true, Ordering::Relaxed);
            set_tick();
        }
        None => Trouble::NoFence.say_once(),
    }
    check();
    sidecar::keep_connected();
}

/// Whether this process can be fenced. One that cannot must not serve.
pub(crate) fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Whether the lease counts for this process already.
pub(crate) fn is_bound() -> bool {
    BOUND.load(Ordering::Relaxed)
}

/// The shared page in force.
pub(crate) fn page() -> Option<&'static PageReader> {
    PAGES.get(PAGE_COUNT.load(Ordering::Acquire).checked_sub(1)?)?.get()
}

/// Maps the page that is there now, if it is not the one in force. Returns whether the page in force is the
/// one that is there now. Only the holder of the connection calls this, so there is never a second caller at
/// the same time.
pub(crate) fn follow_page(path: &CStr) -> bool {
    if page().is_some_and(|page| page.is_current(path)) {
        return true;
    }
    let count = PAGE_COUNT.load(Ordering::Relaxed);
    let Some(slot) = PAGES.get(count) else { return false };
    let Ok(page) = PageReader::open(path) else { return false };
    // The new page has to name this instance again. Until then the deadline of the old one stays armed.
    BOUND.store(false, Ordering::Relaxed);
    if slot.set(page).is_err() {
        return false;
    }
    PAGE_COUNT.store(count + 1, Ordering::Release);
    set_tick();
    true
}

/// Ends this process if it may not go on; else makes sure that it ends at the lease's end.
pub(crate) fn check() {
    let (Some(page), Some(process)) = (page(), process::current()) else { return };
    match page.serving_until(&process.instance) {
        Some(deadline_ns) => {
            BOUND.store(true, Ordering::Relaxed);
            if now_ns() >= deadline_ns {
                end_process();
            }
            if DEADLINE_NS.swap(deadline_ns, Ordering::Relaxed) != deadline_ns {
                set_timer(&DEADLINE_TIMER, libc::TIMER_ABSTIME, deadline_ns, 0);
            }
        }
        None if is_bound() => end_process(),
        None => {}
    }
}

/// Ends this process without letting it run anything more of `smbd`.
pub(crate) fn end_process() -> ! {
    // SAFETY: neither takes memory. The second is for a process that SIGKILL does not reach (see above).
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(128 + libc::SIGKILL)
    }
}

/// The handler of the tick.
extern "C" fn tick(_signal: c_int) {
    // SAFETY: the address of the thread's own errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let interrupted = unsafe { *errno };
    check();
    sidecar::keep_connected();
    // SAFETY: as above. What was interrupted must not see what we did.
    unsafe { *errno = interrupted };
}

/// The signal of the tick: a realtime signal that neither Samba nor glibc uses.
fn tick_signal() -> c_int {
    libc::SIGRTMAX() - 3
}

fn create_timers() -> Option<(libc::timer_t, libc::timer_t)> {
    // SAFETY: all-zero bytes are a valid `sigaction`; the sets and the handler are filled in below. The
    // handler takes one argument, as one without SA_SIGINFO does.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = tick as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigfillset(&mut action.sa_mask);
        if libc::sigaction(tick_signal(), &action, ptr::null_mut()) != 0 {
            return None;
        }
        let mut tick_only: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut tick_only);
        libc::sigaddset(&mut tick_only, tick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &tick_only, ptr::null_mut());
    }
    // The tick goes to the thread that works on the databases, so that handler and database calls never run
    // at the same time. The end goes to the whole process. SAFETY: takes nothing.
    let this_thread = unsafe { libc::gettid() };
    let tick_timer = create_timer(libc::SIGEV_THREAD_ID, tick_signal(), this_thread)?;
    let deadline_timer = create_timer(libc::SIGEV_SIGNAL, libc::SIGKILL, 0)?;
    Some((tick_timer, deadline_timer))
}

fn create_timer(notify: c_int, signal: c_int, thread_id: libc::pid_t) -> Option<libc::timer_t> {
    // SAFETY: all-zero bytes are a valid `sigevent`, and both structs outlive the call.
    unsafe {
        let mut event: libc::sigevent = mem::zeroed();
        event.sigev_notify = notify;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = thread_id;
        let mut timer: libc::timer_t = ptr::null_mut();
        (libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0).then_some(timer)
    }
}

/// Sets the tick to what the page says.
fn set_tick() {
    let interval_ns = match page().map(PageReader::fence_tick_ns) {
        None | Some(0) => FENCE_TICK_DEFAULT_NS,
        Some(told) => told.clamp(*FENCE_TICK_NS.start(), *FENCE_TICK_NS.end()),
    };
    set_timer(&TICK_TIMER, 0, interval_ns, interval_ns);
}

fn set_timer(timer: &AtomicPtr<c_void>, flags: c_int, value_ns: u64, interval_ns: u64) {
    if !is_armed() {
        return;
    }
    let time = libc::itimerspec { it_interval: timespec(interval_ns), it_value: timespec(value_ns) };
    // SAFETY: the timer exists in this process, and `time` outlives the call.
    unsafe { libc::timer_settime(timer.load(Ordering::Relaxed), flags, &time, ptr::null_mut()) };
}

fn timespec(ns: u64) -> libc::timespec {
    // Both fit: the seconds of a u64 of nanoseconds are far below 2^63.
    libc::timespec { tv_sec: (ns / NS_PER_SEC).cast_signed(), tv_nsec: (ns % NS_PER_SEC).cast_signed() }
}
