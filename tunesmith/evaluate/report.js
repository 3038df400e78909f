// The reader's language and, on the switch, the other one. Without scripts the page is in English.
(function () {
  var page = document.documentElement;
  function show(language) {
    page.lang = language;
    document.querySelectorAll("[data-language]").forEach(function (button) {
      button.setAttribute("aria-pressed", String(button.dataset.language === language));
    });
  }
  document.querySelectorAll("[data-language]").forEach(function (button) {
    button.addEventListener("click", function () { show(button.dataset.language); });
  });
  show((navigator.language || "en").toLowerCase().indexOf("zh") === 0 ? "zh" : "en");
})();
