//! Suggestions for mistyped words.

/// Returns the known word with the smallest edit distance to `word`, if one is close enough.
pub fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(word, known);
    let near = known.filter(|known| distance(known) <= 1 + known.len() / 4);
    near.min_by_key(|known| distance(known))
}
