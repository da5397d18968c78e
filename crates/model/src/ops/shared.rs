//! One buffer, many writers.

/// A buffer of which parallel tasks write parts that never overlap.
pub(super) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    buffer: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from a mutable borrow that lives as long as this value; who calls `from` promises disjointness.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(buffer: &'a mut [f32]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), buffer: std::marker::PhantomData }
    }

    /// Everything from `offset` on.
    ///
    /// # Safety
    /// Elements that the caller reads or writes through the slice are touched by no other task.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn from(&self, offset: usize) -> &mut [f32] {
        let offset = offset.min(self.len);
        // SAFETY: inside the borrowed buffer; disjointness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), self.len - offset) }
    }
}
