(** All n! permutations in lexicographic order, and the running mixture over them: for every n it is doubly stochastic. *)

Require Import Reals Lra Lia List Permutation Sorted Factorial.
From Karat Require Import Carrier Sums INV11_mhc_doubly_stochastic.
Import ListNotations.

(** Each element with the others in their order. *)
Fixpoint picks (items : list nat) : list (nat * list nat) :=
  match items with
  | nil => nil
  | x :: rest => (x, rest) :: map (fun pick => (fst pick, x :: snd pick)) (picks rest)
  end.

Fixpoint arrangements (count : nat) (items : list nat) : list (list nat) :=
  match count with
  | O => [nil]
  | S fewer => flat_map (fun pick => map (cons (fst pick)) (arrangements fewer (snd pick))) (picks items)
  end.

Definition permutations (n : nat) : list (list nat) := arrangements n (seq 0 n).

Section Formulas.
Context {K : Carrier}.

Definition add_up (terms : list K) : K := fold_left add terms zero.

(** Entry (i, j): the weights of the permutations that send i to j, added up. *)
Definition mixture (n : nat) (weights : list K) (i j : nat) : K :=
  add_up (map fst (filter (fun term => Nat.eqb (nth i (snd term) O) j) (combine weights (permutations n)))).
End Formulas.

(** *** The permutations *)

Lemma picks_permute (items : list nat) (x : nat) (rest : list nat) :
  In (x, rest) (picks items) -> Permutation items (x :: rest).
Proof.
  revert x rest. induction items as [|y items IH]; intros x rest H; [destruct H|].
  destruct H as [E|H]; [inversion E; reflexivity|].
  apply in_map_iff in H. destruct H as ([z others] & E & H). inversion E; subst; clear E. simpl.
  etransitivity; [apply perm_skip, IH, H | apply perm_swap].
Qed.

Lemma picks_all (items : list nat) (x : nat) : In x items -> exists rest, In (x, rest) (picks items).
Proof.
  induction items as [|y items IH]; intros H; [destruct H|]. destruct H as [->|H].
  - exists items. now left.
  - destruct (IH H) as (rest & Hr). exists (y :: rest). right. apply in_map_iff. now exists (x, rest).
Qed.

Lemma arrangements_all (count : nat) (items s : list nat) :
  length items = count -> (In s (arrangements count items) <-> Permutation s items).
Proof.
  revert items s. induction count as [|count IH]; intros items s L.
  - apply length_zero_iff_nil in L. subst. simpl. split.
    + intros [<-|[]]. constructor.
    + intro P. apply Permutation_sym, Permutation_nil in P. now left.
  - simpl. rewrite in_flat_map. split.
    + intros ([x rest] & Hp & H). apply in_map_iff in H. destruct H as (t & <- & Ht). apply picks_permute in Hp. simpl in *.
      assert (length rest = count) by (apply Permutation_length in Hp; simpl in Hp; lia).
      apply IH in Ht; [|assumption]. rewrite Hp. now apply perm_skip.
    + intro P. destruct s as [|x s]; [apply Permutation_length in P; simpl in P; lia|].
      destruct (picks_all items x) as (rest & Hr); [apply (Permutation_in x P); now left|].
      exists (x, rest). split; [exact Hr|]. apply in_map, IH.
      * apply picks_permute, Permutation_length in Hr. simpl in *. lia.
      * apply picks_permute in Hr. apply (Permutation_cons_inv (a := x)). now rewrite P.
Qed.

Lemma arrangements_length (count : nat) (items : list nat) :
  length items = count -> length (arrangements count items) = fact count.
Proof.
  revert items. induction count as [|count IH]; intros items L; [reflexivity|]. simpl.
  assert (E : forall ps, (forall p, In p ps -> length (snd p) = count) ->
      length (flat_map (fun pick => map (cons (fst pick)) (arrangements count (snd pick))) ps) = length ps * fact count).
  { induction ps as [|p ps IHps]; intro H; [reflexivity|]. simpl.
    rewrite app_length, map_length, IH, IHps by (intros; apply H; simpl; auto). reflexivity. }
  rewrite E.
  - assert (Lp : length (picks items) = length items).
    { clear. induction items as [|x items IH]; [reflexivity|]. simpl. now rewrite map_length, IH. }
    rewrite Lp, L. reflexivity.
  - intros [x rest] H. apply picks_permute, Permutation_length in H. simpl in *. lia.
Qed.

(** Lexicographic order. *)
Fixpoint precedes (s t : list nat) : Prop :=
  match s, t with x :: s', y :: t' => x < y \/ x = y /\ precedes s' t' | _, _ => False end.

Lemma sorted_app {A : Type} (order : A -> A -> Prop) (l m : list A) :
  StronglySorted order l -> StronglySorted order m -> (forall x y, In x l -> In y m -> order x y) ->
  StronglySorted order (l ++ m).
Proof.
  intros Hl Hm H. induction Hl as [|x l Hl IH F]; [exact Hm|]. simpl. constructor.
  - apply IH. intros. apply H; simpl; auto.
  - apply Forall_app. split; [exact F|]. apply Forall_forall. intros y Hy. apply H; simpl; auto.
Qed.

Lemma sorted_map {A B : Type} (order : A -> A -> Prop) (order' : B -> B -> Prop) (f : A -> B) (l : list A) :
  (forall x y, order x y -> order' (f x) (f y)) -> StronglySorted order l -> StronglySorted order' (map f l).
Proof.
  intros H Hl. induction Hl as [|x l Hl IH F]; constructor; [exact IH|].
  apply Forall_map. eapply Forall_impl; [|exact F]. auto.
Qed.

Lemma picks_sorted (items : list nat) : StronglySorted lt items ->
  StronglySorted (fun p q => fst p < fst q) (picks items) /\ Forall (fun p => StronglySorted lt (snd p)) (picks items).
Proof.
  induction items as [|x items IH]; intro H; [split; constructor|].
  inversion H as [|? ? Sorted Above]; subst. destruct (IH Sorted) as [First Rest]. rewrite Forall_forall in Above.
  split; simpl; constructor.
  - eapply sorted_map; [|exact First]. auto.
  - apply Forall_forall. intros p Hp. apply in_map_iff in Hp. destruct Hp as ([y rest] & <- & Hy). simpl.
    apply Above. apply picks_permute in Hy. rewrite Hy. now left.
  - exact Sorted.
  - apply Forall_map. rewrite Forall_forall in *. intros [y rest] Hy. simpl. constructor; [apply (Rest _ Hy)|].
    apply Forall_forall. intros z Hz. apply Above. apply picks_permute in Hy. rewrite Hy. now right.
Qed.

Lemma arrangements_sorted (count : nat) (items : list nat) :
  StronglySorted lt items -> StronglySorted precedes (arrangements count items).
Proof.
  revert items. induction count as [|count IH]; intros items H; [repeat constructor|].
  simpl. destruct (picks_sorted items H) as [First Rest]. revert Rest.
  induction First as [|p ps First IHps F]; intro Rest; [constructor|].
  inversion Rest as [|? ? Hp Hps]; subst. simpl. apply sorted_app; [|now apply IHps|].
  - eapply sorted_map; [|apply IH, Hp]. simpl. auto.
  - intros s t Hs Ht. apply in_map_iff in Hs. destruct Hs as (s' & <- & _).
    apply in_flat_map in Ht. destruct Ht as (q & Hq & Ht). apply in_map_iff in Ht. destruct Ht as (t' & <- & _).
    left. rewrite Forall_forall in F. now apply F.
Qed.

Lemma seq_sorted (start n : nat) : StronglySorted lt (seq start n).
Proof.
  revert start. induction n as [|n IH]; intro start; constructor; [apply IH|].
  apply Forall_forall. intros x Hx. apply in_seq in Hx. lia.
Qed.

(** The list has every permutation of 0 … n - 1 and nothing else, in lexicographic order, n! in all. *)
Theorem permutations_in_order : forall n : nat,
  (forall s, In s (permutations n) <-> Permutation s (seq 0 n)) /\
  StronglySorted precedes (permutations n) /\
  length (permutations n) = fact n.
Proof.
  intro n. repeat split.
  - apply arrangements_all, seq_length.
  - apply arrangements_all, seq_length.
  - apply arrangements_sorted, seq_sorted.
  - apply arrangements_length, seq_length.
Qed.

(** *** The mixture *)

Local Open Scope R_scope.

Definition added (l : list R) : R := fold_right Rplus 0 l.

Lemma add_up_R (l : list R) : add_up (K := on_R) l = added l.
Proof. apply fold_symmetric; simpl; intros; ring. Qed.

Lemma added_permutation (l m : list R) : Permutation l m -> added l = added m.
Proof. induction 1; unfold added in *; simpl; lra. Qed.

Lemma added_app (l m : list R) : added (l ++ m) = added l + added m.
Proof. induction l as [|x l IH]; unfold added in *; simpl; lra. Qed.

Lemma total_nth (g : nat -> R) (s : list nat) :
  total (length s) (fun i => g (nth i s 0%nat)) = added (map g s).
Proof.
  induction s as [|x s IH] using rev_ind; [reflexivity|].
  rewrite app_length, Nat.add_1_r, total_S, map_app, added_app, <- IH, nth_middle.
  rewrite (total_ext (length s) _ (fun i => g (nth i s 0%nat))) by (intros; now rewrite app_nth1).
  unfold added. simpl. lra.
Qed.

(** Of the places of a permutation exactly one has j. *)
Lemma total_column (n : nat) (s : list nat) (j : nat) (w : R) : Permutation s (seq 0 n) -> (j < n)%nat ->
  total n (fun i => if Nat.eqb (nth i s 0%nat) j then w else 0) = w.
Proof.
  intros P Hj. pose proof (Permutation_length P) as L. rewrite seq_length in L.
  set (g := fun k => if Nat.eqb k j then w else 0). change (total n (fun i => g (nth i s 0%nat)) = w).
  rewrite <- L at 1. rewrite total_nth, (added_permutation _ _ (Permutation_map g P)), <- total_nth, seq_length.
  etransitivity; [|exact (total_pick n j w Hj)]. apply total_ext. intros i Hi. now rewrite seq_nth.
Qed.

Lemma total_row (n : nat) (s : list nat) (i : nat) (w : R) : Permutation s (seq 0 n) -> (i < n)%nat ->
  total n (fun j => if Nat.eqb (nth i s 0%nat) j then w else 0) = w.
Proof.
  intros P Hi. assert (In (nth i s 0%nat) (seq 0 n)) as H.
  { apply (Permutation_in _ P), nth_In. apply Permutation_length in P. rewrite seq_length in P. lia. }
  apply in_seq in H. etransitivity; [|apply (total_pick n (nth i s 0%nat) w); lia].
  apply total_ext. intros j _. now rewrite Nat.eqb_sym.
Qed.

Definition entry (terms : list (R * list nat)) (i j : nat) : R :=
  added (map fst (filter (fun term => Nat.eqb (nth i (snd term) O) j) terms)).

Lemma entry_cons (w : R) (s : list nat) (terms : list (R * list nat)) (i j : nat) :
  entry ((w, s) :: terms) i j = (if Nat.eqb (nth i s 0%nat) j then w else 0) + entry terms i j.
Proof. unfold entry. simpl. destruct (Nat.eqb (nth i s 0%nat) j); unfold added; simpl; lra. Qed.

Lemma entry_sums (n : nat) (terms : list (R * list nat)) :
  Forall (fun term => 0 <= fst term /\ Permutation (snd term) (seq 0 n)) terms ->
  (forall i j, 0 <= entry terms i j) /\
  (forall i, (i < n)%nat -> total n (entry terms i) = added (map fst terms)) /\
  (forall j, (j < n)%nat -> total n (fun i => entry terms i j) = added (map fst terms)).
Proof.
  induction 1 as [|[w s] terms [Hw Hs] F (P & Rows & Columns)]; simpl in *.
  { repeat split; intros; [apply Rle_refl | apply total_zero | apply total_zero]. }
  repeat split.
  - intros i j. rewrite entry_cons. specialize (P i j). destruct (Nat.eqb (nth i s 0%nat) j); lra.
  - intros i Hi. rewrite (total_ext n _ _ (fun j _ => entry_cons w s terms i j)), total_plus, total_row by assumption.
    now rewrite <- (Rows i Hi).
  - intros j Hj. rewrite (total_ext n _ _ (fun i _ => entry_cons w s terms i j)), total_plus, total_column by assumption.
    now rewrite <- (Columns j Hj).
Qed.

(** The running mixture: n! weights >= 0 that sum to 1 give a doubly stochastic matrix, for every n. *)
Theorem permutation_mixture_doubly_stochastic : forall (n : nat) (weights : list R),
  length weights = fact n -> Forall (fun w => 0 <= w) weights -> add_up (K := on_R) weights = 1 ->
  doubly_stochastic n (mixture (K := on_R) n weights).
Proof.
  intros n weights L W S. rewrite add_up_R in S. destruct (permutations_in_order n) as (All & _ & Count).
  set (terms := combine weights (permutations n)).
  assert (E : forall i j, mixture (K := on_R) n weights i j = entry terms i j) by (intros; apply add_up_R).
  assert (One : added (map fst terms) = 1).
  { rewrite <- S. f_equal. unfold terms. rewrite <- L in Count. revert Count. clear. revert weights.
    induction (permutations n) as [|s l IH]; intros [|w weights] H; simpl in *; try discriminate; [reflexivity|].
    f_equal. apply IH. lia. }
  destruct (entry_sums n terms) as (P & Rows & Columns).
  { apply Forall_forall. intros [w s] H. rewrite Forall_forall in W. simpl. split.
    - apply W. now apply in_combine_l in H.
    - apply All. now apply in_combine_r in H. }
  repeat split.
  - intros. rewrite E. apply P.
  - intros i Hi. rewrite <- One, <- (Rows i Hi). apply total_ext. intros. apply E.
  - intros j Hj. rewrite <- One, <- (Columns j Hj). apply total_ext. intros. apply E.
Qed.

Lemma permutation_mixture_doubly_stochastic_satisfiable : exists (n : nat) (weights : list R),
  length weights = fact n /\ Forall (fun w => 0 <= w) weights /\ add_up (K := on_R) weights = 1.
Proof.
  exists 3%nat, [/ 2; / 4; / 4; 0; 0; 0]. split; [reflexivity|].
  split; [repeat constructor; lra | rewrite add_up_R; unfold added; simpl; lra].
Qed.
