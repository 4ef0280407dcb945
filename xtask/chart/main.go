// SPDX-License-Identifier: Apache-2.0

// Renders and checks the Helm chart with Helm's own packages and the types of Kubernetes. `cargo xtask setup` builds it: it
// is a tenth of what the program `helm` is made of, and does what the tests need of that.
//
//	zt-chart lint CHART [KEY=VALUE…]       what `helm lint --strict` says
//	zt-chart template CHART [KEY=VALUE…]   what `helm template zt CHART --namespace zt-system` makes, as JSON: text by file
//	zt-chart check FILE…                   manifests against the types of the API server and of the Prometheus operator, unknown
//	                                       fields refused
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	"helm.sh/helm/v3/pkg/strvals"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

const (
	release   = "zt"
	namespace = "zt-system"
	// The Kubernetes of the types below.
	kubernetes = "1.34.0"
)

// Of these no types are known here. A real controller manager reads them in the tests against a real API server.
var foreign = map[string]bool{
	"spire.spiffe.io/v1alpha1": true,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	for _, add := range []func(*runtime.Scheme) error{monitoring.AddToScheme, apiextensions.AddToScheme} {
		if err := add(scheme.Scheme); err != nil {
			return err
		}
	}
	if len(arguments) < 2 {
		return errors.New("usage: zt-chart lint|template CHART [KEY=VALUE…], zt-chart check FILE…")
	}
	what, rest := arguments[0], arguments[1:]
	switch what {
	case "lint":
		return lintChart(rest[0], rest[1:])
	case "template":
		return template(rest[0], rest[1:])
	case "check":
		for _, file := range rest {
			if err := check(file); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown command %q", what)
}

func values(set []string) (map[string]any, error) {
	values := map[string]any{}
	for _, each := range set {
		if err := strvals.ParseInto(each, values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func capabilities() *chartutil.Capabilities {
	capabilities := *chartutil.DefaultCapabilities
	capabilities.KubeVersion = chartutil.KubeVersion{Version: "v" + kubernetes, Major: "1", Minor: "34"}
	return &capabilities
}

func lintChart(path string, set []string) error {
	values, err := values(set)
	if err != nil {
		return err
	}
	version := capabilities().KubeVersion
	linter := lint.AllWithKubeVersion(path, values, namespace, &version)
	for _, message := range linter.Messages {
		fmt.Println(message.Error())
	}
	// As `--strict`: warnings count.
	if linter.HighestSeverity >= support.WarningSev {
		return errors.New("the linter is not content")
	}
	return nil
}

func template(path string, set []string) error {
	given, err := values(set)
	if err != nil {
		return err
	}
	chart, err := loader.Load(path)
	if err != nil {
		return err
	}
	options := chartutil.ReleaseOptions{Name: release, Namespace: namespace, Revision: 1, IsInstall: true}
	// It checks values.schema.json as well.
	merged, err := chartutil.ToRenderValues(chart, given, options, capabilities())
	if err != nil {
		return err
	}
	rendered, err := engine.Render(chart, merged)
	if err != nil {
		return err
	}
	files := map[string]string{}
	for name, text := range rendered {
		if strings.TrimSpace(text) != "" {
			files[filepath.Base(name)] = text
		}
	}
	for _, crd := range chart.CRDObjects() {
		files["crds/"+filepath.Base(crd.Filename)] = string(crd.File.Data)
	}
	return json.NewEncoder(os.Stdout).Encode(files)
}

func check(file string) error {
	text, err := os.Open(file)
	if err != nil {
		return err
	}
	defer text.Close()
	codecs := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)
	reader := yaml.NewYAMLReader(bufio.NewReader(text))
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		converted, err := yaml.ToJSON(document)
		if err != nil {
			return fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		var head struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if string(converted) == "null" {
			continue
		}
		if err := json.Unmarshal(converted, &head); err != nil {
			return fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		if foreign[head.APIVersion] {
			fmt.Printf("%s: %s %s, without types\n", file, head.APIVersion, head.Kind)
			continue
		}
		object, _, err := codecs.UniversalDeserializer().Decode(document, nil, nil)
		if err != nil {
			return fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		if err := roundTrip(object); err != nil {
			return fmt.Errorf("%s, document %d: %w", file, number, err)
		}
		fmt.Printf("%s: %s %s\n", file, head.APIVersion, head.Kind)
	}
}

// What the type cannot hold (quantities, times) shows when it is written again.
func roundTrip(object runtime.Object) error {
	_, err := json.Marshal(object)
	return err
}
