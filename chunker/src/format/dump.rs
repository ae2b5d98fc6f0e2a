//! To come.
use super::{Base, Sink};
pub fn detect(_head: &[u8]) -> bool {
    false
}
pub fn weave<E>(
    new: &mut dyn FnMut(&mut [u8]) -> Result<usize, E>,
    _base: &mut dyn Base,
    sink: &mut dyn Sink<E>,
) -> Result<(), E> {
    let mut b = vec![0; 1 << 20];
    loop {
        let n = new(&mut b)?;
        if n == 0 {
            return Ok(());
        }
        sink.literal(&b[..n])?;
    }
}
