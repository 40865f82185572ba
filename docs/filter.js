// A box above each table inside <div class="filtered"> that keeps the rows that hold every word typed.
document.addEventListener("DOMContentLoaded", function () {
  document.querySelectorAll("div.filtered").forEach(function (part) {
    const rows = Array.from(part.querySelectorAll("tbody tr"));
    const box = document.createElement("input");
    const count = document.createElement("div");
    box.type = "search";
    box.className = "filter-box";
    box.placeholder = "Filter: Lemma 4, Fig. 12, Nash, leakage, e5 ...";
    box.setAttribute("aria-label", "Filter the table");
    count.className = "filter-count";
    count.setAttribute("aria-live", "polite");
    function plain(text) {
      return text.toLowerCase().replace(/figures?|figs?\./g, "fig").replace(/tables?|tab\./g, "tab")
        .replace(/theorems?|thms?\./g, "thm").replace(/equations?|eqs?\./g, "eq").replace(/corollar(y|ies)|cor\./g, "cor")
        .replace(/definitions?|def\./g, "def").replace(/propositions?|prop\./g, "prop").replace(/lemmas/g, "lemma")
        .replace(/(fig|tab|thm|eq|cor|def|prop|lemma)\s+/g, "$1 ");
    }
    // A kind and its number are one word, and a number ends where it ends: "lemma 1" is not "lemma 10".
    const texts = rows.map(function (row) { return plain(row.textContent) + " "; });
    function wanted(query) {
      return plain(query).match(/(?:fig|tab|thm|eq|cor|def|prop|lemma) [a-c]?\.?\d+|\S+/g) || [];
    }
    function holds(text, word) {
      const at = text.indexOf(word);
      if (at < 0) return false;
      return !/ [a-c]?\.?\d+$/.test(word) || !/\d/.test(text.charAt(at + word.length)) || holds(text.slice(at + 1), word);
    }
    function show() {
      const words = wanted(box.value);
      let shown = 0;
      rows.forEach(function (row, i) {
        const visible = words.every(function (word) { return holds(texts[i], word); });
        row.hidden = !visible;
        shown += visible ? 1 : 0;
      });
      count.textContent = words.length ? shown + " of " + rows.length + " rows" : "";
    }
    box.addEventListener("input", show);
    part.insertBefore(count, part.firstChild);
    part.insertBefore(box, part.firstChild);
  });
});
