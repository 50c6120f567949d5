// Podcheck reads pods as kubelet reads static pods, and answers with JSON.
//
// Every step of kubelet's own reader (pkg/kubelet/config/common.go, tryDecodeSinglePod) is taken with
// kubelet's own code: YAML to JSON, the typed decoder, defaults, validation, and the refusal of
// references to an API server. One thing is stricter: a field that kubelet would drop without a
// word, because it knows none of that name or has it twice, is an error here.
//
// Standard input: a JSON list of {"name": FILE, "text": BASE64}. Standard output: a JSON list with one
// answer for each, either {"pod": {…}}, which holds the pod as read and without defaults, or
// {"faults": [{"line": N, "message": TEXT}]}; line 0 means the file as a whole.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	api "k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/capabilities"
	sigsyaml "sigs.k8s.io/yaml"
)

type question struct {
	Name string `json:"name"`
	Text []byte `json:"text"`
}

type fault struct {
	Line    int    `json:"line"`
	Message string `json:"message"`
}

type answer struct {
	Pod    json.RawMessage `json:"pod,omitempty"`
	Faults []fault         `json:"faults,omitempty"`
}

func main() {
	// As kubelet itself does when it starts: static pods may be privileged.
	capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true})
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		fmt.Fprintln(os.Stderr, "podcheck:", err)
		os.Exit(2)
	}
	answers := []answer{}
	for _, question := range questions {
		answers = append(answers, read(question.Text))
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fmt.Fprintln(os.Stderr, "podcheck:", err)
		os.Exit(1)
	}
}

// read takes one pod through every step of kubelet's reader.
func read(text []byte) answer {
	places := newPlaces(text)
	if places.documents > 1 {
		return places.refuse(errors.New("more than one YAML document: kubelet reads the first alone"))
	}
	converted, err := utilyaml.ToJSON(text)
	if err != nil {
		return places.refuse(err)
	}
	if _, err := sigsyaml.YAMLToJSONStrict(text); err != nil {
		return places.refuse(err)
	}
	object, err := runtime.Decode(strictCodecs.UniversalDecoder(), converted)
	if err != nil {
		return places.refuse(err)
	}
	pod, ok := object.(*api.Pod)
	if !ok {
		return places.refuse(errors.New("not a Pod of apiVersion v1"))
	}
	if pod.Name == "" {
		return places.refuse(errors.New("metadata.name is missing"))
	}
	// What kubelet's defaults add, as far as the checks below look at it.
	pod.Name += "-host"
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	pod.Spec.NodeName = "host"
	pod.Status.Phase = api.PodPending
	if faults := validation.ValidatePodCreate(pod, validation.PodValidationOptions{}); len(faults) > 0 {
		return places.refuse(faults.ToAggregate())
	}
	if _, resource, err := podutil.HasAPIObjectReference(pod); err != nil {
		return places.refuse(err)
	} else if resource != "" {
		message := fmt.Sprintf("static pods may not reference %s: a host has no API server", resource)
		return answer{Faults: []fault{{places.mention(strings.TrimSuffix(resource, "s")), message}}}
	}
	return answer{Pod: converted}
}

// strictCodecs tell of unknown and duplicate fields, which kubelet's own ignore.
var strictCodecs = serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict)

// places knows on which line each field of a file stands.
type places struct {
	root      *yaml.Node
	documents int
}

func newPlaces(text []byte) places {
	var found places
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var node yaml.Node
		if decoder.Decode(&node) != nil {
			return found
		}
		if found.root == nil {
			found.root = &node
		}
		if len(node.Content) > 0 && node.Content[0].Tag != "!!null" {
			found.documents++
		}
	}
}

func (p places) refuse(err error) answer {
	var told []fault
	for _, err := range flatten(err) {
		told = append(told, p.tell(err))
	}
	return answer{Faults: told}
}

func flatten(err error) []error {
	var many utilerrors.Aggregate
	if errors.As(err, &many) {
		return utilerrors.Flatten(many).Errors()
	}
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		return strict.Errors()
	}
	return []error{err}
}

var (
	yamlLine  = regexp.MustCompile(`line (\d+): `)
	fieldName = regexp.MustCompile(`field "([^"]+)"`)
	goField   = regexp.MustCompile(`Go struct field \w+\.([\w.]+)`)
)

// tell finds the line that an error means: what it says itself, or where its field stands.
func (p places) tell(err error) fault {
	message := err.Error()
	if at := yamlLine.FindStringSubmatch(message); at != nil {
		line, _ := strconv.Atoi(at[1])
		return fault{line, message}
	}
	var of *field.Error
	path := ""
	if errors.As(err, &of) {
		path = of.Field
	} else if at := fieldName.FindStringSubmatch(message); at != nil {
		path = at[1]
	} else if at := goField.FindStringSubmatch(message); at != nil {
		path = at[1]
	}
	return fault{p.line(path), message}
}

// line follows a path such as spec.containers[0].image as far as it exists.
func (p places) line(path string) int {
	if p.root == nil || len(p.root.Content) == 0 || path == "" {
		return 0
	}
	node, line := p.root.Content[0], 0
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next, at := step(node, part)
		if next == nil {
			break
		}
		node, line = next, at
	}
	return line
}

// mention finds the first field whose name begins with that of a resource, such as secretKeyRef.
func (p places) mention(resource string) int {
	if p.root == nil {
		return 0
	}
	queue := []*yaml.Node{p.root}
	for len(queue) > 0 {
		node := queue[0]
		for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
			if strings.HasPrefix(strings.ToLower(node.Content[i].Value), resource) {
				return node.Content[i].Line
			}
		}
		queue = append(queue[1:], node.Content...)
	}
	return 0
}

// step goes down one part of a path. A decoder's path names no index, so that a list without one
// means the first element that has the part.
func step(node *yaml.Node, part string) (*yaml.Node, int) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == part {
				return node.Content[i+1], node.Content[i].Line
			}
		}
	case yaml.SequenceNode:
		if index, err := strconv.Atoi(part); err == nil && index < len(node.Content) {
			return node.Content[index], node.Content[index].Line
		}
		for _, element := range node.Content {
			if next, line := step(element, part); next != nil {
				return next, line
			}
		}
	}
	return nil, 0
}
