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

/// Asks the allocator to give freed memory back to the system, but for small pieces.
///
/// For a server, whose load comes and goes, and in whose heap pieces that stay would otherwise hold
/// what was freed around them. Call it once at the start of a program. Without glibc it does nothing.
pub fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: as in `keep_freed_memory`.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 16);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 17);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Asks the system to back memory by huge pages, which the processor finds faster than many small
/// ones. What is in it stays; where the system refuses, only speed is lost. Less than one huge page
/// is left alone.
pub fn huge_pages<T>(values: &[T]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const PAGE: usize = 4096;
        const HUGE: usize = 2 << 20;
        let (start, len) = (values.as_ptr().addr(), size_of_val(values));
        let first = start.next_multiple_of(PAGE);
        if len < 2 * HUGE {
            return;
        }
        let len = (start + len - first) / PAGE * PAGE;
        // SAFETY: the range lies within `values`; the advice changes no content, and is answered
        // with an error where it cannot be followed.
        unsafe {
            let first = values.as_ptr().cast_mut().cast::<libc::c_void>().byte_add(first - start);
            libc::madvise(first, len, libc::MADV_HUGEPAGE);
            // Small pages that are there already.
            libc::madvise(first, len, libc::MADV_COLLAPSE);
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = values;
}
