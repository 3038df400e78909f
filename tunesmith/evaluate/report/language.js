// The reader's language and, on the switch, the other one. Without scripts the page is in English.
(function () {
  var page = document.documentElement;
  function show(language) {
    page.lang = language;
    document.querySelectorAll("[data-language]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.language === language));
    });
    // What can't hold two spans: words of a list, hints in an empty field.
    document.querySelectorAll("option[data-en]").forEach(function (option) {
      option.textContent = option.dataset[language];
    });
    document.querySelectorAll("input[data-en]").forEach(function (input) {
      input.placeholder = input.dataset[language];
    });
  }
  document.querySelectorAll("[data-language]").forEach(function (button) {
    button.addEventListener("click", function () { show(button.dataset.language); });
  });
  document.addEventListener("languagechanged", function () { show(page.lang); });
  show((navigator.language || "en").toLowerCase().indexOf("zh") === 0 ? "zh" : "en");
  // On paper everything is open.
  var opened = [];
  addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    opened.forEach(function (part) { part.open = true; });
  });
  addEventListener("afterprint", function () {
    opened.forEach(function (part) { part.open = false; });
  });
})();
