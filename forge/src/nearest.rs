//! Words that somebody may have meant.

/// The word that is most like another, if any is like it at all.
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let near = known.filter(|known| distance(known) <= 1 + known.len() / 4);
    near.min_by_key(|known| distance(known))
}
