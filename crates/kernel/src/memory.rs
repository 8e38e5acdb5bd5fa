/// Asks the allocator to keep freed memory for the next step instead of giving it back.
///
/// A training step frees and takes hundreds of megabytes; each time they would come back page by
/// page, zeroed by the system. Call it once at the start of a program. Without glibc it does
/// nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` with these parameters only changes thresholds of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
