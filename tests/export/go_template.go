// Runs a Modelfile's TEMPLATE over conversations as Ollama does: text/template with .Messages.
// usage: go run go_template.go < {"template": "...", "conversations": [[{"Role": "...", "Content": "..."}]]}
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var given struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(given.Template))
	rendered := make([]string, 0, len(given.Conversations))
	for _, messages := range given.Conversations {
		var out bytes.Buffer
		if err := parsed.Execute(&out, map[string]any{"Messages": messages, "Response": ""}); err != nil {
			panic(err)
		}
		rendered = append(rendered, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(rendered)
}
